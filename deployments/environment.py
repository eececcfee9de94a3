"""Default environment variables: all files are stored below ``$PUL_HOME``, and no library sends usage data.

A variable that is already set keeps its value, which is checked here if only a library would look at it.
"""

import contextlib
import fcntl
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from pul_core.errors import UserError
from tasks.store.home import home

PROFILES = """\
# Written by `pul`: "up" while `pul up` is running, otherwise "ephemeral": each process starts a temporary server.
active = "{active}"

[profiles.ephemeral]
PREFECT_SERVER_ALLOW_EPHEMERAL_MODE = "true"

[profiles.up]
PREFECT_API_URL = "{api_url}"
"""
UNUSABLE = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # in the path of a database: the URL would name another file
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = [f"{protocol}_proxy" for protocol in ("http", "https", "all")]
TRACKING_SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
SQLITE_FILE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)")


def configure() -> Path:
    """Create ``$PUL_HOME``, set the variables that are not set yet, and return the folder. Call it before importing Prefect or MLflow.

    Raises:
        UserError: the folder cannot be created or written, or a variable has a value that cannot be used.
    """
    folder = _create_home()
    defaults = {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_PROFILES_PATH": str(folder / "prefect" / "profiles.toml"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "MPLCONFIGDIR": str(folder / "cache" / "matplotlib"),  # otherwise Matplotlib writes to the user's home
        "PYTHONSAFEPATH": "1",  # otherwise a tasks.py or logging.py in the working folder is imported by `python -m uvicorn`
    }
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PUL_ARTIFACTS"):
        if value := os.environ.pop(name, "").strip():
            os.environ[name] = value
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ["PUL_HOME"] = str(folder)
    if "://" not in (artifacts := os.environ.get("PUL_ARTIFACTS", "://")):
        os.environ["PUL_ARTIFACTS"] = str(Path(artifacts).expanduser().absolute())
    _check_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    if url := os.environ.get("PREFECT_API_URL"):
        _check_api_url(url)
    _drop_unusable_proxies()
    bypass_proxy(*LOOPBACK, urlsplit(active_server() or "").hostname if not url else None)
    return folder


def _create_home() -> Path:
    if not os.environ.get("PUL_HOME", "").strip():
        os.environ.pop("PUL_HOME", None)
    folder: str | Path = os.environ.get("PUL_HOME") or ".pul"
    if "://" in str(folder):
        raise UserError(
            f"PUL_HOME={folder} is a URL: set PUL_HOME to a folder of this machine, and PUL_ARTIFACTS to the URL of the artifacts"
        )
    try:
        folder = home()
        if UNUSABLE.search(str(folder)) or not str(folder).isprintable():
            raise UserError(f"PUL_HOME={str(folder)!r} has a character that a database URL cannot have: set PUL_HOME to another folder")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.gettempdir()
    except UserError:
        raise
    except OSError as error:
        if "temporary directory" in str(error):
            raise UserError("there is no folder for temporary files: set TMPDIR to a folder that you can write") from error
        raise UserError(f"PUL_HOME={folder} cannot be created ({error.strerror}): set PUL_HOME to a folder that you can write") from error
    except (RuntimeError, ValueError) as error:
        raise UserError(f"PUL_HOME={folder} is not a path ({error}): set PUL_HOME to a folder") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"PUL_HOME={folder} is not writable: set PUL_HOME to a folder that you can write")
    return folder


def _check_tracking_uri(uri: str) -> None:
    scheme, separator, rest = uri.partition("://")
    is_valid = separator and scheme.split("+")[0] in TRACKING_SCHEMES and rest.strip("/") not in ("", ":memory:")
    if not is_valid or (scheme.startswith("http") and not _is_server(uri)):
        shown = f"{scheme}://{rest.rpartition('@')[2]}" if separator else uri  # without a password
        raise UserError(
            f"MLFLOW_TRACKING_URI={shown} is not a server or a database: set it to http://HOST:PORT or sqlite:////FOLDER/mlflow.db, "
            "or unset it"
        )
    if sqlite := SQLITE_FILE.fullmatch(uri):
        os.environ["MLFLOW_TRACKING_URI"] = f"{sqlite[1]}{Path(sqlite[2]).absolute()}"


def _check_api_url(url: str) -> None:
    if not (_is_server(url) and urlsplit(url).scheme in ("http", "https")):
        raise UserError(f"PREFECT_API_URL={url} is not the URL of a server: set it to http://HOST:PORT/api, or unset it")
    if "api" not in urlsplit(url).path.split("/"):
        address = re.sub(r"(?i)/+(api/*)?$", "", url)
        raise UserError(f"PREFECT_API_URL={url} is not the URL of Prefect's API: set it to {address}/api, or unset it")


def _is_server(url: str) -> bool:
    """Return whether a URL has a protocol, a host and, if it states one, a port that exists."""
    try:
        parts = urlsplit(url)
        return bool(parts.scheme and parts.hostname and parts.port != 0 and not re.search(r"\s", url))
    except ValueError:  # of a port or an IPv6 address
        return False


def _drop_unusable_proxies() -> None:
    """Unset proxies that httpx, which Prefect uses, cannot even be started with, although they are not used for the local servers."""
    for name in [name for proxy in PROXIES for name in (proxy, proxy.upper()) if os.environ.get(name)]:
        url = os.environ[name] = os.environ[name].strip()
        url = url if "://" in url else f"http://{url}"
        protocol = url.partition("://")[0].lower()
        if not _is_server(url):
            problem, remedy = "it is not the address of a proxy", "set it to http://HOST:PORT"
        elif protocol not in ("http", "https") and not (protocol in ("socks5", "socks5h") and find_spec("socksio")):
            problem = f"Prefect's client does not support {protocol} here"
            remedy = "install the package socksio" if protocol.startswith("socks5") else "set an http, https or socks5 proxy"
        else:
            continue
        print(f"pul: {name} is ignored, because {problem}: {remedy}", file=sys.stderr)
        del os.environ[name]


def bypass_proxy(*hosts: str | None) -> None:
    """Add hosts to ``no_proxy``, for this process and its subprocesses, if a proxy is set: servers on this machine are not behind it."""
    if not any(os.environ.get(name) for proxy in PROXIES for name in (proxy, proxy.upper())):
        return
    listed = [host for name in ("no_proxy", "NO_PROXY") for host in os.environ.get(name, "").replace(" ", ",").split(",") if host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*listed, *filter(None, hosts)]))


def use_server(api_url: str | None) -> None:
    """Select the Prefect server of all `prefect` and `pul` commands in this directory; None: each starts a temporary server."""
    path = home() / "prefect" / "profiles.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(PROFILES.format(active="up" if api_url else "ephemeral", api_url=api_url or ""), encoding="utf-8")
    partial.replace(path)


def active_server() -> str | None:
    """Return the API URL of the Prefect server that commands use, or None if each starts a temporary server."""
    path = home() / "prefect" / "profiles.toml"
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # damaged: the next command writes it again
        profiles = {}
    url = os.environ.get("PREFECT_API_URL") or profiles.get("profiles", {}).get(profiles.get("active"), {}).get("PREFECT_API_URL")
    return url.rstrip("/") if url else None


@contextlib.contextmanager
def up_lock(patience: float = 0.0) -> Iterator[bool]:
    """Hold the lock that `pul up` holds as long as it runs, and yield whether it was free; the system releases it when a process dies.

    Args:
        patience: seconds to wait for it.
    """
    deadline = time.monotonic() + patience
    with (home() / "up.lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                yield False
            except OSError:  # a file system without locks
                yield True
            else:
                yield True
            return


def up_is_running() -> bool:
    """Return whether a `pul up` of this ``$PUL_HOME`` is running, however busy its servers are."""
    with up_lock() as is_free:
        return not is_free
