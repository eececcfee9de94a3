"""What the fault campaign shares: one Prefect server, a process that forks `pul` commands, and what has to hold after every fault."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

collect_ignore = ["driver.py"]
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def clean(**more):
    """An environment without anything of the user's."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {name: str(value) for name, value in more.items()}


def until(condition, *, seconds=300.0, say=lambda: "it never came"):
    """Poll until a condition holds and return what it is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, say()
        time.sleep(0.05)
    return found


def answers(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
        return answer.status == 200
    return False


class Server:
    """A server of a test's own on loopback, that can be killed and started again on the same port."""

    def __init__(self, folder, command, **environment):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.environment = folder, environment
        self.command = [str(part).format(port=self.port) for part in command]
        self.start()

    def start(self):
        folder, port = self.folder, self.port
        environment = clean(HOME=folder, **{name: str(value).format(port=port) for name, value in self.environment.items()})
        with (folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(self.command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)

    def wait(self, path):
        until(lambda: answers(f"http://127.0.0.1:{self.port}{path}"), say=lambda: (self.folder / "server.log").read_text())
        return self

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory):
    """A Prefect server for the whole campaign."""
    folder = tmp_path_factory.mktemp("prefect")
    settings = {"PREFECT_HOME": folder, "PREFECT_SERVER_API_PORT": "{port}", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": 1}
    server = Server(folder, [BIN / "prefect", "server", "start", "--no-services"], **settings).wait("/api/health")
    yield server
    server.stop()


class Command:
    """A `pul` command that the driver forked."""

    def __init__(self, driver, pid, folder):
        self.driver, self.pid, self.folder, self.code = driver, pid, folder, None

    def poll(self):
        if self.code is None:
            self.code = self.driver.ask(self.pid)
        return self.code

    @property
    def log(self):
        return (self.folder / "run.log").read_text()

    def wait(self, seconds=600.0):
        until(lambda: self.poll() is not None, seconds=seconds, say=lambda: f"it hangs:\n{self.log[-3000:]}")
        return self.code

    def wait_for(self, words, seconds=300.0):
        """Wait until the log says something."""
        until(lambda: words in self.log or self.poll() is not None, seconds=seconds)
        assert words in self.log, self.log
        return self

    def kill(self, number=signal.SIGKILL):
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()


class Driver:
    """The process that forks."""

    def __init__(self, folder, api):
        self.folder, self.api, self.pids = folder, api, []
        environment = clean(HOME=folder, PUL_HOME=folder, PREFECT_HOME=folder / "prefect", PREFECT_API_URL=api)
        command = [sys.executable, HERE / "driver.py", folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (folder / "driver.log").open("ab")}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)
        assert self.process.stdout.readline(), (folder / "driver.log").read_text()

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, *argv, die=None, **environment):
        """Start a command in a folder, whose home is made with an MLflow database in it, so that its making is not waited for again."""
        home = folder / ".pul"
        if not home.exists():
            home.mkdir(parents=True)
            shutil.copy(self.folder / "mlflow.db", home)
        (folder / "run.log").touch()
        order = {"cwd": str(folder), "argv": list(map(str, argv)), "die": die}
        environment = clean(HOME=folder, PREFECT_API_URL=self.api, **environment)
        self.pids.append(self.ask(order | {"env": environment}))
        return Command(self, self.pids[-1], folder)


@pytest.fixture(scope="session")
def driver(tmp_path_factory, prefect_api):
    started = Driver(tmp_path_factory.mktemp("driver"), f"http://127.0.0.1:{prefect_api.port}/api")
    yield started
    for pid in started.pids:  # of a test that gave up on its command
        if started.ask(pid) is None:
            os.kill(pid, signal.SIGKILL)
    started.process.stdin.close()
    assert started.process.wait(60) == 0


@pytest.fixture(scope="session")
def arguments(tiny, tiny_pair):
    """Of a run that has an epoch checkpoint in every training."""
    sections = tiny | {"fine_tuning": tiny["fine_tuning"] | {"epochs": 2}}
    options = [f"--set={section}.{name}={value}" for section, values in sections.items() for name, value in values.items()]
    return ["run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options]


class Left:
    """What a run left in its folder."""

    def __init__(self, folder):
        self.home = folder / ".pul"

    @property
    def artifacts(self):
        """Names of artifacts are digests of their content."""
        return {str(path.relative_to(self.home)) for path in self.home.glob("artifacts/*/[!.]*")}  # .partial-*: pul gc removes them

    def all_whole(self):
        """Say whether every artifact's bytes are those its name says."""
        return all(hashlib.sha256((self.home / name).read_bytes()).hexdigest().startswith(Path(name).stem) for name in self.artifacts)

    @property
    def client(self):
        from mlflow.tracking import MlflowClient

        return MlflowClient(f"sqlite:///{self.home}/mlflow.db")

    @property
    def runs(self):
        return self.client.search_runs([experiment.experiment_id for experiment in self.client.search_experiments()])

    @property
    def parents(self):
        return [run for run in self.runs if run.data.tags["pul.kind"] == "run"]

    @property
    def iterations(self):
        """Metrics of every finished run's iterations; times apart."""
        children = [run for run in self.runs if run.data.tags["pul.kind"] == "iteration" and run.info.status == "FINISHED"]
        told = [(int(run.data.tags["pul.iteration"]), run.data.metrics) for run in children]
        return sorted(
            (number, sorted((name, value) for name, value in found.items() if not name.startswith("seconds_"))) for number, found in told
        )

    def assert_like(self, undisturbed):
        """Equal bytes and metrics, one parent, one child an iteration, no metric twice, nothing open, nothing half-done."""
        assert self.artifacts == undisturbed.artifacts
        assert self.iterations == undisturbed.iterations
        assert [run.info.status for run in self.parents] == ["FINISHED"]
        for run in self.runs:
            for name in run.data.metrics:
                steps = [metric.step for metric in self.client.get_metric_history(run.info.run_id, name)]
                assert len(steps) == len(set(steps)), f"{name} stands twice"
        assert not list(self.home.glob("checkpoints/*"))


@pytest.fixture(scope="session")
def wait_until():
    """The function `until`."""
    return until


@pytest.fixture(scope="session")
def processes():
    """A function that finds the living processes with a variable in their environment."""

    def find(name, value):
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(name) == str(value) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.cmdline())
        return found

    return find


@pytest.fixture
def server():
    """A function that starts a `Server`."""
    started = []

    def start(*command, **environment):
        started.append(Server(*command, **environment))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture(scope="session")
def left():
    """The class `Left`."""
    return Left


@pytest.fixture(scope="session")
def undisturbed(driver, arguments, tmp_path_factory):
    """What an uninterrupted run leaves, and how many seconds it takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    command = driver.start(folder, *arguments)
    assert command.wait() == 0, command.log
    left = Left(folder)
    left.seconds = time.monotonic() - started
    return left


@pytest.fixture
def go_on(driver, arguments):
    """A function that starts a run in a folder, or goes on with the one that is there, as a person would."""

    def start(folder, **options):
        known = (folder / ".pul" / "mlflow.db").exists() and Left(folder).parents
        return driver.start(folder, *(["resume"] if known else arguments), **options)

    return start
