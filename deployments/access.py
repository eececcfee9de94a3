"""Access control for the servers of `pul up`: they listen on loopback, or require a password. Passwords are read from the environment only.

`PREFECT_API_AUTH_STRING` (user:password) protects Prefect's server and authenticates its clients; `MLFLOW_TRACKING_USERNAME` and
`MLFLOW_TRACKING_PASSWORD` do the same for MLflow. No password is written to a file or a log; MLflow stores a salted hash.
"""

import base64
import ipaddress
import os
import secrets
import socket
import urllib.error
import urllib.request
from typing import NamedTuple

from pul_core.errors import UserError
from tasks.store.home import home

MLFLOW_USERS = "mlflow-auth.db"
# A path of each server that requires a password, and that every user may read.
PROTECTED_PATHS = {"Prefect": "/api/admin/version", "MLflow": "/api/2.0/mlflow/experiments/get?experiment_id=0"}


class UpError(UserError):
    """A server cannot be started, or it would be accessible without a password."""


class Access(NamedTuple):
    """The address that the servers listen on, and the ``user:password`` of each server; None if it requires no password."""

    host: str
    prefect: str | None
    mlflow: str | None

    @property
    def url_host(self) -> str:
        """Return the host for URLs that are opened on this machine: loopback if the servers listen on all addresses."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]" if ":" in host else host


def read_access(host: str) -> Access:
    """Read the passwords from the environment; they are mandatory unless the address is loopback.

    Args:
        host: the address to listen on.

    Raises:
        UpError: other machines could reach a server without a password, or the credentials are incomplete.
    """
    prefect = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    mlflow = [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD")]
    if any(mlflow) and not all(mlflow):
        raise UpError("only one of MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD is set: set both or neither")
    if prefect and not all(prefect.partition(":")):
        raise UpError("PREFECT_API_AUTH_STRING must be user:password, neither of them empty")
    missing = [] if prefect else ["PREFECT_API_AUTH_STRING=user:password"]
    missing += [] if all(mlflow) else ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    if missing and not _is_loopback(host):
        raise UpError(
            f"--host {host} would let other machines start processes here without a password: set {', '.join(missing)} in the environment, "
            "or omit --host"
        )
    return Access(host, prefect or None, f"{mlflow[0]}:{mlflow[1]}" if all(mlflow) else None)


def server_environment(access: Access) -> dict[str, str]:
    """Return the environment variables that protect the servers with the passwords and authenticate their clients."""
    variables: dict[str, str] = {}
    if access.prefect:
        variables |= {"PREFECT_SERVER_API_AUTH_STRING": access.prefect, "PREFECT_API_AUTH_STRING": access.prefect}
    if access.mlflow:
        user, _, password = access.mlflow.partition(":")
        settings = home() / "mlflow-auth.ini"
        variables |= {
            "MLFLOW_AUTH_ADMIN_USERNAME": user,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_AUTH_CONFIG_PATH": os.environ.get("MLFLOW_AUTH_CONFIG_PATH") or str(settings),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",  # by default MLflow allows every request that none of its rules covers
            "MLFLOW_FLASK_SERVER_SECRET_KEY": os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32),
        }
        users = str(home() / MLFLOW_USERS).replace("%", "%%")  # escaped for an .ini file
        settings.write_text(
            "# Written by `pul up`, which passes the name and password of the administrator in the environment.\n"
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{users}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
    return variables


def check_authentication(server: str, url: str, login: str | None) -> None:
    """Check that a server rejects requests without a password and accepts the password of the environment.

    Args:
        server: a key of `PROTECTED_PATHS`.
        url: the server's URL, without a path.
        login: ``user:password``; None if the server requires no password.

    Raises:
        UpError: the server accepts a request without a password, or rejects the password.
    """
    if login is None:
        return
    if http_status(url + PROTECTED_PATHS[server]) != 401:
        raise UpError(f"{server}'s server accepts requests without a password although one is set, so it was stopped: see its log")
    if http_status(url + PROTECTED_PATHS[server], login) != 200:
        remedy = f"it stores its first one: set that one, or delete {home() / MLFLOW_USERS}" if server == "MLflow" else "see its log"
        raise UpError(f"{server}'s server rejects the user and password of the environment: {remedy}")


def http_status(url: str, login: str | None = None, timeout: float = 30) -> int:
    """Return the HTTP status of a GET request.

    Args:
        url: the URL to request.
        login: ``user:password`` for basic authentication; None to send no credentials.
        timeout: in seconds.
    """
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def _is_loopback(host: str) -> bool:
    try:
        addresses = {str(socket_address[0]) for *_, socket_address in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError) as error:  # UnicodeError: an empty or very long part of a name
        raise UpError(f"--host {host} is not an address of this machine: omit it, or see `ip address`") from error
    return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in addresses)
