"""Local servers: `pul up` starts Prefect, MLflow and a worker; the other commands use its Prefect server or a temporary one."""

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

from deployments.access import Access, UpError, check_authentication, http_status, read_access, server_environment
from deployments.environment import active_server, use_server
from deployments.errors import quieten
from pul_core.errors import UserError
from tasks.store.home import home

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
POOL = "pul"
START_SECONDS = 300
STOP_SECONDS = 15


def run_servers(prefect_port: int, mlflow_port: int, host: str) -> None:
    """Start all services, print their URLs, and stop them all on Ctrl-C, on SIGTERM or when one of them ends.

    Args:
        prefect_port: the port of Prefect's API and UI.
        mlflow_port: the port of MLflow's API and UI.
        host: the address to listen on.

    Raises:
        UpError: a port is in use, a service does not start, or other machines could reach a server without a password.
    """
    access = read_access(host)
    for port, option in ((prefect_port, "--prefect-port"), (mlflow_port, "--mlflow-port")):
        _check_free(host, port, option)
    prefect_url, mlflow_url = (f"http://{access.url_host}:{port}" for port in (prefect_port, mlflow_port))
    # The services inherit these variables. They are set before this process imports prefect, which reads them, too.
    os.environ |= server_environment(access) | {
        "PREFECT_API_URL": f"{prefect_url}/api",
        "PREFECT_SERVER_API_PORT": str(prefect_port),
        "PREFECT_SERVER_API_HOST": host,
    }
    logs = home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    services: dict[str, subprocess.Popen[bytes]] = {}
    for stop_signal in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a background job of a shell ignores it by default
        signal.signal(stop_signal, signal.default_int_handler)
    try:
        _start_services(services, access, prefect_url, mlflow_url, mlflow_port)
        use_server(f"{prefect_url}/api")
        from tasks.operations.lost_runs import close_lost_runs

        for name in close_lost_runs(prefect=True):
            print(f"run {name} ended unexpectedly and is now closed: press Retry in Prefect, or start it again")
        print(
            f"Prefect   {prefect_url}{'  (requires a password)' if access.prefect else ''}\n"
            f"MLflow    {mlflow_url}{'  (requires a password)' if access.mlflow else ''}\n"
            f"logs      {logs}\n"
            "To start a run, in another terminal in this directory:  prefect deployment run pul/iterate --watch\n"
            "Ctrl-C stops everything.",
            flush=True,
        )
        _watch(services, logs)
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
    finally:
        use_server(None)
        _stop(services)


def _start_services(
    services: dict[str, subprocess.Popen[bytes]], access: Access, prefect_url: str, mlflow_url: str, mlflow_port: int
) -> None:
    """Start the servers, check their authentication, create the deployments, and start the worker.

    Each process is added to ``services`` as soon as it is started, so that the caller can stop it after an error.
    """
    logs = home() / "logs"
    prefect = _executable("prefect")
    services["prefect server"] = _start("prefect-server", [prefect, "server", "start"])
    mlflow = [_executable("mlflow"), "server", "--host", access.host, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"], "--default-artifact-root", str(home() / "mlartifacts")]
    services["mlflow server"] = _start("mlflow-server", [*mlflow, *(["--app-name", "basic-auth"] if access.mlflow else [])])
    _wait(f"{prefect_url}/api/health", services["prefect server"], logs / "prefect-server.log")
    check_authentication("Prefect", prefect_url, access.prefect)
    _run([prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"])
    _run([prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)])
    services["worker"] = _start(
        "worker", [prefect, "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", "pul-up"]
    )
    _wait(f"{mlflow_url}/health", services["mlflow server"], logs / "mlflow-server.log")
    check_authentication("MLflow", mlflow_url, access.mlflow)


def prepare_flow_run() -> None:
    """Prepare this process for a flow run: select the server of `pul up` if it answers, handle SIGTERM, and quieten the libraries.

    Raises:
        UserError: the server requires a password.
    """
    url = active_server()
    if url is None or not server_answers(f"{url}/health", patience=15):
        use_server(None)
        _stop_stray_servers()
    elif "PREFECT_API_KEY" not in os.environ and http_status(f"{url}/admin/version", os.environ.get("PREFECT_API_AUTH_STRING")) == 401:
        raise UserError(f"the server at {url} requires a password: set PREFECT_API_AUTH_STRING to the value used for `pul up`")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    quieten()


def _stop_stray_servers() -> None:
    """Stop temporary Prefect servers of this ``$PUL_HOME`` whose `pul run` was killed."""
    if "pul" in " ".join(psutil.Process(1).cmdline()):  # a container, where the server of a live `pul run` is a child of process 1
        return
    strays = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            orphaned = process.info["ppid"] == 1 and "prefect.server.api.server:create_app" in (process.info["cmdline"] or [])
            if orphaned and process.environ().get("PREFECT_HOME") == os.environ["PREFECT_HOME"]:
                process.terminate()
                strays.append(process)
    for process in psutil.wait_procs(strays, timeout=STOP_SECONDS)[1]:
        process.kill()


def server_answers(url: str, patience: float = 1.0) -> bool:
    """Return whether a server answers at a URL.

    Args:
        url: the URL to request.
        patience: seconds to wait for a server that accepts connections but is busy.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                return bool(response.status == 200)
        except OSError as error:  # URLError is a subclass
            refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
            if refused or time.monotonic() > deadline:
                return False


def _check_free(host: str, port: int, option: str) -> None:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UpError(f"--host {host} is not an address of this machine: omit it, or see `ip address`") from error
        raise UpError(f"port {port} is in use: stop the other `pul up`, or choose another port with {option}") from error


def _executable(name: str) -> str:
    """Return the path of a command: the one of this Python environment, else the one on PATH."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if path is None:
        raise UpError(f"the command {name} is missing: install the project again")
    return path


def _start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (home() / "logs" / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def _run(command: list[str]) -> None:
    completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if completed.returncode != 0:
        raise UpError(f"{' '.join(command[1:])} failed: {(completed.stderr or completed.stdout).strip()[-500:]}")


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UpError(f"a server ended with code {process.returncode} while it started: see {log}")
        if server_answers(url):
            return
        time.sleep(0.3)
    raise UpError(f"a server did not answer at {url} within {START_SECONDS} s: see {log}")


def _watch(services: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    while True:
        for name, process in services.items():
            if process.poll() is not None:
                raise UpError(
                    f"the {name} ended with code {process.returncode}, see {logs}: start pul up again, then press Retry for its runs"
                )
        time.sleep(0.5)


def _stop(services: dict[str, subprocess.Popen[bytes]]) -> None:
    """Stop the services in reverse order: the worker first, while the server can still record the end of its flow run."""
    for process in reversed(services.values()):
        _signal_group(process, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while _signal_group(process, 0) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)
        _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a service and its subprocesses, which may outlive it, and return whether any of these processes exists."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True
