"""`pul up`: Prefect's server, MLflow's server, the deployments and one process worker, started and stopped together."""

import contextlib
import errno
import logging
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

from deployments.access import Access, UpError, access_of, check_locked, server_environment, status_of
from deployments.environment import active_server, use_server
from pul_core.errors import UserError
from tasks.store.home import home

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
POOL = "pul"
STOP_SECONDS = 15.0


def up(prefect_port: int, mlflow_port: int, host: str = "127.0.0.1") -> None:
    """Start everything, say where it is, and stop it all at the first Ctrl-C, SIGTERM or death of a part.

    Args:
        prefect_port: of Prefect's API and UI.
        mlflow_port: of MLflow's UI.
        host: the address to listen on.

    Raises:
        UpError: a port is taken, a part does not start, or others could reach a server that asks for no password.
    """
    access = access_of(host)
    for port, option in ((prefect_port, "--prefect-port"), (mlflow_port, "--mlflow-port")):
        _check_free(host, port, option)
    prefect, mlflow = (f"http://{access.reached_at}:{port}" for port in (prefect_port, mlflow_port))
    own = server_environment(access) | {"PREFECT_API_URL": f"{prefect}/api"}
    own |= {"PREFECT_SERVER_API_PORT": str(prefect_port), "PREFECT_SERVER_API_HOST": host}
    logs = home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    parts: dict[str, subprocess.Popen[bytes]] = {}
    for stop in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a shell that starts this in the background lets it be ignored
        signal.signal(stop, interrupt)
    try:
        _start_parts(parts, os.environ | own, access, prefect, mlflow, mlflow_port)
        use_server(f"{prefect}/api")
        _close_lost_runs(own)
        _announce(access, prefect, mlflow, logs)
        _watch(parts, logs)
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
    finally:
        use_server(None)
        _stop(parts)


def _start_parts(
    parts: dict[str, subprocess.Popen[bytes]], environment: dict[str, str], access: Access, prefect: str, mlflow: str, mlflow_port: int
) -> None:
    """Start the servers, see that they are locked, deploy, start the worker; what was started stands in ``parts``, whatever happens."""
    logs = home() / "logs"
    parts["prefect server"] = _start("prefect-server", [_tool("prefect"), "server", "start"], environment)
    serve = ["server", "--host", access.host, "--port", str(mlflow_port), "--workers", "1"]
    serve += ["--app-name", "basic-auth"] if access.mlflow else []
    store = ["--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"], "--default-artifact-root", str(home() / "mlartifacts")]
    parts["mlflow server"] = _start("mlflow-server", [_tool("mlflow"), *serve, *store], environment)
    _wait(f"{prefect}/api/health", parts["prefect server"], logs / "prefect-server.log")
    check_locked("Prefect", prefect, access.prefect)
    _run([_tool("prefect"), "work-pool", "create", POOL, "--type", "process", "--overwrite"], environment)
    _run([_tool("prefect"), "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)], environment)
    worker = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", "pul-up"]
    parts["worker"] = _start("worker", [_tool("prefect"), *worker], environment)
    _wait(f"{mlflow}/health", parts["mlflow server"], logs / "mlflow-server.log")
    check_locked("MLflow", mlflow, access.mlflow)


def _close_lost_runs(own: dict[str, str]) -> None:
    """Close what an earlier worker left open."""
    os.environ.update(own)  # before the first import of prefect in this process
    from tasks.operations.lost_runs import close_lost_runs

    for name in close_lost_runs(prefect=True):
        print(f"run {name} ended without a word: closed; press Retry in Prefect, or start it again")


def choose_server() -> None:
    """Let the flow that is run next find its server, and keep libraries' chatter off the terminal."""
    from deployments.complaints import quieten  # it knows this module's error

    url = active_server()
    if url is None or not server_answers(f"{url}/health", patience=15):
        use_server(None)
        stop_stray_servers()
    elif "PREFECT_API_KEY" not in os.environ and status_of(f"{url}/admin/version", os.environ.get("PREFECT_API_AUTH_STRING")) == 401:
        raise UserError(f"the server at {url} asks for a password: set PREFECT_API_AUTH_STRING as where `pul up` was started")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, interrupt)
    quieten()


def stop_stray_servers() -> int:
    """Stop temporary servers of Prefect that a killed `pul run` left on this home, and return how many there were."""
    in_container = "pul" in " ".join(psutil.Process(1).cmdline())  # then its own server is a child of process 1
    strays = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            temporary = (
                not in_container and "prefect.server.api.server:create_app" in (process.info["cmdline"] or []) and process.info["ppid"] == 1
            )
            if temporary and process.environ().get("PREFECT_HOME") == os.environ["PREFECT_HOME"]:
                process.terminate()
                strays.append(process)
    for process in psutil.wait_procs(strays, timeout=STOP_SECONDS)[1]:
        process.kill()
    return len(strays)


def server_answers(url: str, patience: float = 1.0) -> bool:
    """Say whether a server answers at a URL; one that listens and is busy is given some seconds' patience."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError as error:  # URLError is one
            refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
            if refused or time.monotonic() > deadline:
                return False


def interrupt(*_: object) -> None:
    """Let a signal end the process like Ctrl-C does, so that what was started is closed and stopped."""
    raise KeyboardInterrupt


def _check_free(host: str, port: int, option: str) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UpError(f"--host {host} is no address of this machine") from error
            raise UpError(f"port {port} is in use: is `pul up` running already? Otherwise choose another with {option}") from error


def _tool(name: str) -> str:
    """Return a command of this very environment, whatever PATH says."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise UpError(f"the command {name} is missing: install the project again")
    return found


def _start(name: str, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with (home() / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        raise UpError(f"{' '.join(command[1:])} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UpError(f"a server ended while it started: see {log}")
        if server_answers(url):
            return
        time.sleep(0.3)
    raise UpError(f"a server did not answer at {url} within {seconds:.0f} s: see {log}")


def _announce(access: Access, prefect: str, mlflow: str, logs: Path) -> None:
    print(f"Prefect   {prefect}{'  (asks for a password)' if access.prefect else ''}")
    print(f"MLflow    {mlflow}{'  (asks for a password)' if access.mlflow else ''}")
    print(f"logs      {logs}")
    print("Start a run from another terminal in this directory:  prefect deployment run pul/iterate --watch")
    print("Ctrl-C stops everything.", flush=True)


def _watch(parts: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    while True:
        for name, process in parts.items():
            if process.poll() is not None:
                raise UpError(f"the {name} ended with code {process.returncode} (see {logs}): start pul up again, then Retry what it ran")
        time.sleep(0.5)


def _stop(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Stop the worker first, so that its flow run can still tell the server; then the servers."""
    for process in reversed(parts.values()):
        _signal(process, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while _signal(process, 0) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a part and all it started, who may outlive it, and say whether anybody was there."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
