"""Every test works in a home of its own below pytest's temporary folder; flows run against a real Prefect server, started once."""

import contextlib
import copy
import functools
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).parent.parent
collect_ignore = [
    "peers.py",
    "peers_features.py",
    "reliability.py",
    "parameter_tables.py",
]  # not tests: commands, and code for another environment
BIN = Path(sys.executable).parent

_session_home = tempfile.mkdtemp(prefix="pul-test-")
os.environ["PUL_HOME"] = _session_home
for name in ("PUL_ARTIFACTS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
    os.environ.pop(name, None)

from deployments.environment import configure  # noqa: E402

configure()
settings.register_profile("pul", deadline=None)  # an example may read and write files, on a machine that does other work
settings.load_profile("pul")


def pytest_configure(config):
    """Give each of several test processes cores of its own: two that compute on the same ones are ten times slower, not two."""
    if (worker := getattr(config, "workerinput", None)) and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        first = int(worker["workerid"].removeprefix("gw"))
        os.sched_setaffinity(0, cores[first :: worker["workercount"]] or cores)


# Of several test processes, one gets all tests of a file, and one gets all of these files, which share one `pul up`.
UP_FILES = ("test_up.py", "test_finished_run.py", "test_operations.py", "test_browser.py")
# The files that take minutes begin, the longest first; then come the other slow tests, then the fast ones.
LONG_FILES = (*UP_FILES, "test_flow.py", "test_sweep.py", "test_access.py", "test_kills.py", "test_pul_by_hand.py", "test_cli.py")


def process_group(nodeid):
    """Return the name of the group that a test belongs to; a group runs in one process."""
    file = nodeid.split("::")[0]
    return "up" if Path(file).name in UP_FILES else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Distribute the groups.

    The groups of xdist 3.8 itself (`--dist loadgroup`) have no effect with pytest 9.2, which ignores the node ids that xdist sets.
    """
    from xdist.scheduler import LoadFileScheduling

    class GroupScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return process_group(nodeid)

    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    """Check that the shared `pul up` is started once, and begin with the slow tests, so that none of them is last."""
    outside = [item.nodeid for item in items if "up" in getattr(item, "fixturenames", ()) and item.path.name not in UP_FILES]
    if outside:
        raise pytest.UsageError(f"{outside[0]} uses the shared `pul up`: move it to a file of UP_FILES")
    if hasattr(config, "workerinput"):
        ranks = {name: rank for rank, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: (item.get_closest_marker("slow") is None, ranks.get(item.path.name, len(ranks))))


@pytest.fixture
def tried(record_property):
    """A function that says how often a test tried its fault, if more than once."""
    return lambda times: record_property("tried", times)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    """Note of which fault a test is, for the campaign's record."""
    report = (yield).get_result()
    if marker := item.get_closest_marker("fault"):
        report.fault = {"fault": marker.args[0], "seen": marker.args[1], "test": item.nodeid.split("[")[0]}


def pytest_terminal_summary(terminalreporter):
    """Write how often each fault was tried and survived to $PUL_FAULTS_RECORD; what was not run keeps its last entry."""
    if not (record := os.environ.get("PUL_FAULTS_RECORD")):
        return
    found = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            if (fault := getattr(report, "fault", None)) and (report.when == "call" or outcome != "passed"):
                entry = found.setdefault(
                    fault["test"], fault | {"date": time.strftime("%Y-%m-%d"), "tried": 0, "survived": 0, "skipped": 0}
                )
                times = 0 if outcome == "skipped" else dict(report.user_properties).get("tried", 1)
                entry["tried"] += times
                entry["survived"] += times if outcome == "passed" else 0
                entry["skipped"] += outcome == "skipped"
    path = Path(record)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known | found, indent=2, sort_keys=True) + "\n")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh ``$PUL_HOME``."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("PUL_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def prefect_server():
    """A real Prefect server for all flow runs of the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


def person(pid: int, camid: int, shot: int, height: int = 64, width: int = 32) -> np.ndarray:
    """A crop whose clothes tell the person: upper and lower half in the person's colours, light by camera, noise by shot."""
    rng = np.random.default_rng(pid)
    upper, lower = rng.integers(0, 255, (2, 3))
    image = np.empty((height, width, 3))
    image[: height // 2], image[height // 2 :] = upper, lower
    noise = np.random.default_rng((pid + 1, camid, shot)).normal(0, 12, image.shape)
    return np.clip(image * (0.85 + 0.1 * camid) + noise, 0, 255).astype(np.uint8)


def write_market(root: Path, pids: range, *, test_pids: range = range(0), shots: int = 3) -> Path:
    """A data set in the Market-1501 layout with two cameras; query is camera 1, gallery camera 2, with a distractor and a junk image."""

    def save(folder: str, pid: int, camid: int, shot: int, seed: int | None = None) -> None:
        path = root / folder / f"{pid:04d}_c{camid}s1_{shot:06d}_00.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(person(seed if seed is not None else pid, camid, shot)).save(path, quality=95)

    for pid in pids:
        for camid in (1, 2):
            for shot in range(shots):
                save("bounding_box_train", pid, camid, shot)
    for pid in test_pids:
        save("query", pid, 1, 0)
        for shot in range(2):
            save("bounding_box_test", pid, 2, shot)
    if len(test_pids):
        save("bounding_box_test", 0, 2, 90, seed=990)
        save("bounding_box_test", -1, 2, 91, seed=991)
    return root


@pytest.fixture(scope="session")
def draw():
    """The function `person`."""
    return person


@pytest.fixture(scope="session")
def market():
    """The function `write_market`."""
    return write_market


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory):
    """A source of 6 people and a target of 6 to adapt to and 5 to score."""
    root = tmp_path_factory.mktemp("pair")
    return write_market(root / "source", range(1, 7)), write_market(root / "target", range(11, 17), test_pids=range(21, 26))


@pytest.fixture(scope="session")
def drawn_pair(tmp_path_factory):
    """A source and a target of drawn people, in folders: harder than the tiny pair, so that two models have different scores."""
    from pul_core.synthetic.people import Sizes
    from tasks.data.synthesize import synthesize_domain

    root = tmp_path_factory.mktemp("drawn")
    sizes = Sizes(train_identities=8, train_images=48, test_identities=8, queries=16, gallery_images=48)
    return [synthesize_domain(root, domain, seed=10, sizes=sizes, processes=1) for domain in ("source", "target")]


@pytest.fixture(scope="module")
def module_home(tmp_path_factory):
    """One home for a module: later runs profit from the cache of earlier ones, as a user's do."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, tracking_in(folder, patch):
        patch.setenv("PUL_HOME", str(folder))
        yield folder


@functools.cache
def empty_mlflow_database():
    """An MLflow database with all tables and nothing in them. MLflow needs seconds to create it."""
    from mlflow.tracking import MlflowClient

    file = Path(_session_home) / "empty-mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def copy_mlflow_database(home):
    """Give a new home a copy of an empty MLflow database; test_cli, test_environment and test_up begin without one."""
    if not (home / "mlflow.db").exists():
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_mlflow_database(), home / "mlflow.db")


@pytest.fixture(scope="session")
def mlflow_database():
    """The function `copy_mlflow_database`."""
    return copy_mlflow_database


@contextlib.contextmanager
def tracking_in(home, patch):
    """Use the MLflow database of a home during the block, and the previous one after it. MLflow keeps the URI in a global, too."""
    import mlflow

    from tasks.tracking.client import client

    copy_mlflow_database(home)
    before, uri = mlflow.get_tracking_uri(), f"sqlite:///{home}/mlflow.db"
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    client.cache_clear()
    yield
    mlflow.set_tracking_uri(before)
    client.cache_clear()


@pytest.fixture(scope="session")
def compute():
    """Compute resources of a step on one thread of the CPU."""
    from tasks.store.references import Compute

    return Compute(device="cpu", threads=1, dtype="float32")


@pytest.fixture
def plan(tiny):
    """The resolved plan of a run that takes seconds."""
    from tasks.store.config import resolve_plan

    return resolve_plan(tiny | {"target": "x"})


@pytest.fixture
def pixels(home, tiny_pair):
    """The tiny target's training images, decoded at the size of the tiny model."""
    from tasks.decode import decode
    from tasks.index import index

    return decode.fn(index.fn(str(tiny_pair[1]), "target"), split="train", height=64, width=32)


@pytest.fixture(scope="session")
def skipped():
    """A function that returns row and reason of the images that decoding skipped."""
    from tasks.store.artifacts import read_table

    def read(pixels):
        return [(row["row"], row["error"]) for row in read_table(pixels.decoded).to_pylist() if row["error"]]

    return read


@pytest.fixture
def model(home):
    """The tiny model, untrained."""
    from pul_core.settings import Model
    from tasks.models import initial_model

    return initial_model.fn(Model(backbone="test_resnet", weights="random", height=64, width=32), seed=0)


def touch_files(root: Path, *names: str) -> Path:
    """Empty files of these names: readers of layouts open nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture(scope="session")
def stub():
    """The function `touch_files`."""
    return touch_files


TINY = {
    "model": {"backbone": "test_resnet", "weights": "random", "height": 64, "width": 32},
    "pretraining": {"epochs": 2, "batch_size": 8},
    "fine_tuning": {"epochs": 1, "batch_size": 8},
    "kmeans": {"num_clusters": 6},
    "selection": {"min_similarity": 0.5},
    "stopping": {"max_iterations": 2},
    "machine": {"threads": 1},
}


@pytest.fixture(scope="session")
def tiny():
    """Parameters of a run that takes seconds; not to be changed in place."""
    return copy.deepcopy(TINY)


@pytest.fixture(scope="session")
def tiny_options(tiny):
    """The parameters of `tiny` as options of the command."""
    return [f"--set={section}.{name}={value}" for section, values in tiny.items() for name, value in values.items()]


@pytest.fixture(scope="session")
def table_of():
    """A function that returns titles and rows of a printed table, cells stripped."""

    def read(text):
        lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if " | " in line]
        return lines[0], lines[1:]

    return read


@pytest.fixture
def tracking(home, monkeypatch):
    """The MLflow database of the fresh home."""
    with tracking_in(home, monkeypatch):
        yield


@pytest.fixture(name="free_port")
def free_port_function():
    """The function `free_port`."""
    return free_port


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Modules with these names in the user's folder must not be imported instead of the project's, a library's or Python's.
FOREIGN_MODULES = ("tasks", "flows", "deployments", "pul_core", "prefect", "mlflow", "uvicorn", "torch", "logging", "queue", "typing")


def start_up(folder, *options, **variables):
    """Start everything in a directory that looks like the project's, with foreign modules; return the process and the ports."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in FOREIGN_MODULES:
        (folder / f"{name}.py").write_text("raise SystemExit('imported from the working folder')\n")
    ports = free_port(), free_port()
    clean = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ} | {"HOME": str(folder), **variables}
    command = [BIN / "pul", "up", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]), *options]
    log = (folder / "up.log").open("w")
    process = subprocess.Popen(command, cwd=folder, env=clean, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 480
    while "Ctrl-C stops" not in (folder / "up.log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "up.log").read_text()
        time.sleep(0.5)
    return process, ports


@contextlib.contextmanager
def running_up(folder, *options, **variables):
    """Start everything, yield the two ports, and see it stop whole."""
    process, ports = start_up(folder, *options, **variables)
    try:
        yield ports
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(120)
    assert code == 0
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"something still listens on {port}"


@pytest.fixture(scope="session")
def pul_up():
    """The function `start_up`."""
    return start_up


@pytest.fixture(scope="session")
def pul_up_while():
    """The function `running_up`."""
    return running_up


def read_graph(api, flow_run, last="finish-run"):
    """Ask Prefect's server for what its page of a finished flow run draws: the nodes by id."""
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(f"{api}/flow_runs/{flow_run}/graph-v2") as answer:
            nodes = dict(json.load(answer)["nodes"])
        if any(node["label"] == last and node["end_time"] for node in nodes.values()):
            return nodes
        assert time.monotonic() < deadline, "task runs are told to the server as events; they should have arrived"
        time.sleep(0.5)


@pytest.fixture(scope="session")
def graph():
    """The function `read_graph`."""
    return read_graph


@pytest.fixture(scope="session")
def up(tmp_path_factory):
    """`pul up` as it is by default: the directory and the ports. All tests that use it run in one process."""
    folder = tmp_path_factory.mktemp("project")
    with running_up(folder) as ports:
        yield folder, ports


class FinishedRun(NamedTuple):
    """A run of the tiny pair: its project's directory, its names in `pul` and in Prefect, and what the command printed."""

    folder: Path
    name: str
    flow_run_id: str
    printed: str

    @property
    def home(self):
        """``$PUL_HOME`` of the run."""
        return self.folder / ".pul"


@pytest.fixture(scope="session")
def finished_run(up, tiny, tiny_pair):
    """One run that many tests read, made by the deployment of the shared `pul up`; a test that changes it uses a copy of its home."""
    folder, _ = up
    parameters = json.dumps(tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])})
    command = [BIN / "prefect", "deployment", "run", "pul/iterate", "--params", parameters, "--watch"]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (name,) = (path.name for path in (folder / ".pul" / "runs").iterdir())
    return FinishedRun(folder, name, done.stdout.split("UUID: ")[1].split()[0], done.stdout)


@pytest.fixture
def pul_here(home, monkeypatch):
    """Run `pul` in this process, which has imported everything already, and return its exit code or error message.

    Its flows use the Prefect server of the session, if a test asks for it.
    """
    with commands_in(home, monkeypatch) as run:
        yield run


@pytest.fixture
def pul_at_finished_run(finished_run, up, monkeypatch):
    """Run `pul` in this process with the home of the finished run and the servers of `pul up`; return its exit code or error message."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOCAL_STORAGE_PATH, temporary_settings

    prefect_home = finished_run.home / "prefect"
    settings = {PREFECT_API_URL: f"http://127.0.0.1:{up[1][0]}/api", PREFECT_HOME: prefect_home}
    with temporary_settings(settings | {PREFECT_LOCAL_STORAGE_PATH: prefect_home / "storage"}):
        monkeypatch.setenv("PUL_HOME", str(finished_run.home))
        with commands_in(finished_run.home, monkeypatch) as run:
            yield run


@contextlib.contextmanager
def commands_in(home, monkeypatch):
    """Yield a function that runs `pul` in this process, and undo what the command does to the process."""
    from deployments.cli import main
    from tasks.tracking.runs import RESUME

    monkeypatch.chdir(home)
    monkeypatch.setenv(RESUME, "")  # `pul resume` sets it

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["pul", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    handler = signal.getsignal(signal.SIGTERM)
    levels = {log_handler: log_handler.level for log_handler in logging.getLogger().handlers}
    with tracking_in(home, monkeypatch):
        yield run
    for log_handler, level in levels.items():
        log_handler.setLevel(level)
    signal.signal(signal.SIGTERM, handler)
    logging.captureWarnings(False)
