"""Fixtures of the fault campaign: one Prefect server, a process that forks `pul` commands, and the assertions after every fault."""

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
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def clean(**variables):
    """Return an environment without the user's variables."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {name: str(value) for name, value in variables.items()}


def until(condition, *, seconds=300.0, message=lambda: "timeout"):
    """Poll until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def is_healthy(url):
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
        return response.status == 200
    return False


class Server:
    """A server on loopback that can be killed and started again on the same port."""

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
        until(lambda: is_healthy(f"http://127.0.0.1:{self.port}{path}"), message=lambda: (self.folder / "server.log").read_text())
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
    """A `pul` command that the driver has forked."""

    def __init__(self, driver, pid, folder):
        self.driver, self.pid, self.folder, self.code = driver, pid, folder, None

    def poll(self):
        if self.code is None:
            self.code = self.driver.request(self.pid)
        return self.code

    @property
    def log(self):
        return (self.folder / "run.log").read_text()

    def wait(self, seconds=600.0):
        until(lambda: self.poll() is not None, seconds=seconds, message=lambda: f"the command does not end:\n{self.log[-3000:]}")
        return self.code

    def wait_for(self, text, seconds=300.0):
        """Wait until the log contains a text."""
        until(lambda: text in self.log or self.poll() is not None, seconds=seconds)
        assert text in self.log, self.log
        return self

    def kill(self, number=signal.SIGKILL):
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.wait()


class Driver:
    """The process that forks the commands (driver.py)."""

    def __init__(self, folder, api):
        self.folder, self.api, self.pids = folder, api, []
        environment = clean(HOME=folder, PUL_HOME=folder, PREFECT_HOME=folder / "prefect", PREFECT_API_URL=api)
        command = [sys.executable, HERE / "driver.py", folder]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (folder / "driver.log").open("ab")}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **pipes)
        assert self.process.stdout.readline(), (folder / "driver.log").read_text()

    def request(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, *argv, die=None, **environment):
        """Start a command in a folder; a new home gets a copy of an MLflow database, because creating one takes seconds."""
        home = folder / ".pul"
        if not home.exists():
            home.mkdir(parents=True)
            shutil.copy(self.folder / "mlflow.db", home)
        (folder / "run.log").touch()
        order = {"cwd": str(folder), "argv": list(map(str, argv)), "die": die}
        environment = clean(HOME=folder, PREFECT_API_URL=self.api, PUL_CHECKPOINT_SECONDS=0, **environment)
        self.pids.append(self.request(order | {"env": environment}))
        return Command(self, self.pids[-1], folder)


@pytest.fixture(scope="session")
def driver(tmp_path_factory, prefect_api):
    driver = Driver(tmp_path_factory.mktemp("driver"), f"http://127.0.0.1:{prefect_api.port}/api")
    yield driver
    for pid in driver.pids:  # commands of failed tests
        if driver.request(pid) is None:
            os.kill(pid, signal.SIGKILL)
    driver.process.stdin.close()
    assert driver.process.wait(60) == 0


@pytest.fixture(scope="session")
def arguments(tiny, tiny_pair):
    """Arguments of a run that saves an epoch checkpoint in every training, because the interval is 0."""
    sections = tiny | {"fine_tuning": tiny["fine_tuning"] | {"epochs": 2}}
    options = [f"--set={section}.{name}={value}" for section, values in sections.items() for name, value in values.items()]
    return ["run", "--source", str(tiny_pair[0]), "--target", str(tiny_pair[1]), *options]


class RunFolder:
    """The artifacts and MLflow runs in the home of a folder."""

    def __init__(self, folder):
        self.home = folder / ".pul"

    @property
    def artifacts(self):
        """Names of all artifacts, which are digests of their content."""
        return {
            str(path.relative_to(self.home)) for path in self.home.glob("artifacts/*/[!.]*")
        }  # without .partial-*, which pul gc removes

    def all_intact(self):
        """Return whether the digest of every artifact matches its name."""
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
        """Metrics of all finished iterations, without times."""
        nested = [run for run in self.runs if run.data.tags["pul.kind"] == "iteration" and run.info.status == "FINISHED"]
        iterations = [(int(run.data.tags["pul.iteration"]), run.data.metrics) for run in nested]
        return sorted(
            (number, sorted((name, value) for name, value in metrics.items() if not name.startswith("seconds_")))
            for number, metrics in iterations
        )

    def assert_equals(self, undisturbed):
        """Equal bytes and metrics, one finished parent run, one nested run per iteration, no repeated metrics, no checkpoints."""
        assert self.artifacts == undisturbed.artifacts
        assert self.iterations == undisturbed.iterations
        assert [run.info.status for run in self.parents] == ["FINISHED"]
        for run in self.runs:
            for name in run.data.metrics:
                steps = [metric.step for metric in self.client.get_metric_history(run.info.run_id, name)]
                assert len(steps) == len(set(steps)), f"{name} is logged twice"
        assert not list(self.home.glob("checkpoints/*"))


@pytest.fixture(scope="session")
def wait_until():
    """The function `until`."""
    return until


@pytest.fixture(scope="session")
def processes():
    """A function that returns the command lines of the live processes with a certain environment variable."""

    def find(name, value):
        command_lines = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.environ().get(name) == str(value) and process.status() != psutil.STATUS_ZOMBIE:
                    command_lines.append(process.cmdline())
        return command_lines

    return find


@pytest.fixture
def server():
    """A function that starts a `Server`."""
    servers = []

    def start(*command, **environment):
        servers.append(Server(*command, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def run_folder():
    """The class `RunFolder`."""
    return RunFolder


@pytest.fixture(scope="session")
def undisturbed(driver, arguments, tmp_path_factory):
    """The folder of an uninterrupted run, with its duration in seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    command = driver.start(folder, *arguments)
    assert command.wait() == 0, command.log
    undisturbed = RunFolder(folder)
    undisturbed.seconds = time.monotonic() - started
    return undisturbed


@pytest.fixture
def start_or_resume(driver, arguments):
    """A function that starts a run in a folder, or resumes the one in it."""

    def start(folder, **options):
        has_run = (folder / ".pul" / "mlflow.db").exists() and RunFolder(folder).parents
        return driver.start(folder, *(["resume"] if has_run else arguments), **options)

    return start
