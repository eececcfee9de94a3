"""Local servers: `pul up` starts Prefect, MLflow and a worker; the other commands use its Prefect server or a temporary one."""

import contextlib
import errno
import logging
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil

from deployments.access import Access, UpError, check_authentication, http_status, read_access, server_environment
from deployments.environment import active_server, bypass_proxy, up_is_running, up_lock, use_server
from deployments.errors import print_only_warnings, quieten
from pul_core.errors import UserError
from tasks.store.home import UI_URL_FILE, WORKING_FOLDER, home

PREFECT_FILE = Path(__file__).with_name("prefect.yaml")
# The folder of the packages. Prefect imports flows from the folder where they were deployed; the user's may contain a tasks.py.
ROOT = Path(__file__).parent.parent
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
    if prefect_port == mlflow_port:
        raise UpError(f"--prefect-port and --mlflow-port are both {prefect_port}: choose two ports")
    for port, option in ((prefect_port, "--prefect-port"), (mlflow_port, "--mlflow-port")):
        _check_free(host, port, option)
    if os.environ["MLFLOW_TRACKING_URI"].startswith("http"):
        raise UpError("MLFLOW_TRACKING_URI names a server that is already running, but pul up starts one of its own: unset it")
    with up_lock(patience=2) as is_free:
        if not is_free:
            raise UpError(
                f"pul up is already running in {home()} ({active_server() or 'starting'}): stop it, or set PUL_HOME to another folder"
            )
        check_prefect_database()
        _run_services(access, prefect_port, mlflow_port)


def _run_services(access: Access, prefect_port: int, mlflow_port: int) -> None:
    prefect_url, mlflow_url = (f"http://{access.url_host}:{port}" for port in (prefect_port, mlflow_port))
    bypass_proxy(access.url_host.strip("[]"))
    # The services inherit these variables. They are set before this process imports prefect, which reads them, too.
    os.environ |= server_environment(access) | {
        "PREFECT_API_URL": f"{prefect_url}/api",
        "PREFECT_SERVER_API_PORT": str(prefect_port),
        "PREFECT_SERVER_API_HOST": access.host,
        WORKING_FOLDER: str(Path.cwd()),
    }
    logs = home() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    services: dict[str, subprocess.Popen[bytes]] = {}
    for stop_signal in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: a background job of a shell ignores it by default
        signal.signal(stop_signal, signal.default_int_handler)
    try:
        _start_services(services, access, prefect_url, mlflow_url, mlflow_port)
        use_server(f"{prefect_url}/api")
        (home() / UI_URL_FILE).write_text(f"{mlflow_url}\n", encoding="utf-8")
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
    from tasks.tracking.client import client

    quieten()
    client()  # creates the database, which must not be created by two processes at the same time
    mlflow = [_executable("mlflow"), "server", "--host", access.host, "--port", str(mlflow_port), "--workers", "1"]
    mlflow += ["--backend-store-uri", os.environ["MLFLOW_TRACKING_URI"], "--default-artifact-root", str(home() / "mlartifacts")]
    services["mlflow server"] = _start("mlflow-server", [*mlflow, *(["--app-name", "basic-auth"] if access.mlflow else [])])
    _wait(f"{prefect_url}/api/health", services["prefect server"], logs / "prefect-server.log")
    check_authentication("Prefect", prefect_url, access.prefect)
    _run([prefect, "work-pool", "create", POOL, "--type", "process", "--overwrite"])
    _run([prefect, "--no-prompt", "deploy", "--all", "--prefect-file", str(PREFECT_FILE)], ROOT)
    services["worker"] = _start(
        "worker", [prefect, "worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", "pul-up"]
    )
    _wait(f"{mlflow_url}/health", services["mlflow server"], logs / "mlflow-server.log")
    check_authentication("MLflow", mlflow_url, access.mlflow)


def prepare_flow_run(*, only_warnings: bool = False) -> None:
    """Prepare this process for a flow run: select the server of `pul up` if it runs, handle SIGTERM, and quieten the libraries.

    Args:
        only_warnings: print only the warnings and errors of the log, so that nothing else surrounds the result of the command.

    Raises:
        UserError: the server requires a password, or the one that PREFECT_API_URL names does not answer.
    """
    url = active_server()
    if "PREFECT_API_URL" in os.environ:
        if not server_answers(f"{url}/health", patience=60, only_healthy=False):
            raise UserError(f"PREFECT_API_URL={url} does not answer: start that server, or unset PREFECT_API_URL")
    elif not up_is_running() and not (url and server_answers(f"{url}/health", patience=15)):
        url = None
        use_server(None)
        _stop_stray_servers()
        check_prefect_database()
    if url and "PREFECT_API_KEY" not in os.environ and _requires_password(url):
        raise UserError(f"the server at {url} requires a password: set PREFECT_API_AUTH_STRING to the value used for `pul up`")
    logging.captureWarnings(True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    quieten()
    if only_warnings:
        print_only_warnings()
    _start_temporary_server()


def _start_temporary_server() -> None:
    """Start Prefect's temporary server, if no other is used, so that Ctrl-C does not reach it: it records the end of the stopped run."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the server
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def check_prefect_database() -> None:
    """Check that this version of Prefect can read its database: its server would fail with a traceback, after minutes.

    Raises:
        UserError: a newer version has written the database, or it is damaged.
    """
    file = Path(os.environ["PREFECT_HOME"], "prefect.db")
    spec = find_spec("prefect")  # importing it takes seconds
    assert spec is not None and spec.origin is not None
    known = Path(spec.origin).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)) as database:
            ((revision,),) = database.execute("SELECT version_num FROM alembic_version")
    except (sqlite3.OperationalError, ValueError):  # it does not exist yet, is being created, or is in use
        return
    except sqlite3.DatabaseError as error:
        raise UserError(f"{file} is damaged ({error}): restore it from a backup (docs/operations.md), or move it away") from error
    if not any(known.glob(f"*{revision}*.py")):
        raise UserError(f"{file} was written by a newer version of Prefect: install that version, or move the file away")


def _requires_password(url: str) -> bool:
    """Return whether a server rejects the password of the environment; a server that is too busy to say so is not asked again."""
    with contextlib.suppress(OSError):
        return http_status(f"{url}/admin/version", os.environ.get("PREFECT_API_AUTH_STRING"), timeout=5) == 401
    return False


def _stop_stray_servers() -> None:
    """Stop temporary Prefect servers of this ``$PUL_HOME`` whose `pul run` was killed, as far as this user may see processes."""
    with contextlib.suppress(psutil.Error):
        if "pul" in " ".join(psutil.Process(1).cmdline()):  # a container, where the server of a live `pul run` is a child of process 1
            return
    with contextlib.suppress(psutil.Error):
        strays = [process for process in psutil.process_iter(["cmdline", "ppid"]) if _is_stray(process)]
        for process in strays:
            process.terminate()
        for process in psutil.wait_procs(strays, timeout=STOP_SECONDS)[1]:
            process.kill()


def _is_stray(process: psutil.Process) -> bool:
    orphaned = process.info["ppid"] == 1 and "prefect.server.api.server:create_app" in (process.info["cmdline"] or [])
    with contextlib.suppress(psutil.Error):
        return orphaned and process.environ().get("PREFECT_HOME") == os.environ["PREFECT_HOME"]
    return False


def server_answers(url: str, patience: float = 1.0, *, only_healthy: bool = True) -> bool:
    """Return whether a server answers at a URL.

    Args:
        url: the URL to request.
        patience: seconds to wait for a server that accepts connections but is busy.
        only_healthy: return False for a server that answers with an error, or has a certificate that only its own clients accept.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError:
            return not only_healthy
        except OSError as error:  # URLError is a subclass
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                return not only_healthy
            if isinstance(reason, ConnectionRefusedError | socket.gaierror) or time.monotonic() > deadline:
                return False


def _check_free(host: str, port: int, option: str) -> None:
    if not 0 < port < 65536:
        raise UpError(f"{option} must be from 1 to 65535, got {port}")
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UpError(f"--host {host} is not an address of this machine: omit it, or see `ip address`") from error
        if error.errno == errno.EACCES:
            raise UpError(f"port {port} may only be used by root: choose a port of at least 1024 with {option}") from error
        raise UpError(f"port {port} is in use: stop the other `pul up`, or choose another port with {option}") from error


def _executable(name: str) -> str:
    """Return the path of a command: the one of this Python environment, else the one on PATH."""
    path = shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)
    if path is None:
        raise UpError(f"the command {name} is missing: install the project again")
    return path


def _start(name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a service in the folder of the logs, because uvicorn puts its working folder before all packages."""
    logs = home() / "logs"
    with (logs / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=logs, start_new_session=True)


def _run(command: list[str], folder: Path | None = None) -> None:
    completed = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, cwd=folder)
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
