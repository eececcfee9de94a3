"""Who may reach the servers of `pul up`: this machine alone, or whoever knows the passwords. Passwords come from the environment only.

`PREFECT_API_AUTH_STRING` (user:password) makes Prefect's server ask and lets its clients in; `MLFLOW_TRACKING_USERNAME` and
`MLFLOW_TRACKING_PASSWORD` do the same for MLflow. Nothing of them is written to a file or a log; MLflow keeps a salted hash.
"""

import base64
import ipaddress
import os
import secrets
import socket
import urllib.error
import urllib.request
from typing import NamedTuple

from tasks.store.home import home

MLFLOW_USERS = "mlflow-auth.db"
WAYS_IN = {"Prefect": "/api/admin/version", "MLflow": "/api/2.0/mlflow/experiments/get?experiment_id=0"}  # open to whoever is let in


class UpError(RuntimeError):
    """A server that did not start or must not, said in one sentence."""


class Access(NamedTuple):
    """Where servers listen and whom they let in; ``user:password`` of each, None where nobody is asked."""

    host: str
    prefect: str | None
    mlflow: str | None

    @property
    def reached_at(self) -> str:
        """Return the host's name in a URL that this machine can open."""
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        if address.is_unspecified:  # every address, loopback too
            return "127.0.0.1" if address.version == 4 else "[::1]"
        return self.host if address.version == 4 else f"[{self.host}]"


def access_of(host: str) -> Access:
    """Read from the environment who is let in, and refuse to let everybody in from elsewhere.

    Args:
        host: the address to listen on.

    Raises:
        UpError: other machines could reach a server that asks for no password, or the environment tells half of one.
    """
    prefect = os.environ.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    mlflow = [os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD")]
    if any(mlflow) and not all(mlflow):
        raise UpError("MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD belong together: set both or none")
    if prefect and not all(prefect.partition(":")):
        raise UpError("PREFECT_API_AUTH_STRING is user:password, with a colon between them")
    missing = [] if prefect else ["PREFECT_API_AUTH_STRING=user:password"]
    missing += [] if all(mlflow) else ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    if missing and not _is_loopback(host):
        raise UpError(
            f"--host {host} would let other machines start processes here without a password: set {', '.join(missing)} in the environment "
            "first, or leave --host out"
        )
    return Access(host, prefect or None, f"{mlflow[0]}:{mlflow[1]}" if all(mlflow) else None)


def server_environment(access: Access) -> dict[str, str]:
    """Return the variables that make the servers ask for the passwords and let their clients in."""
    variables: dict[str, str] = {}
    if access.prefect:
        variables |= {"PREFECT_SERVER_API_AUTH_STRING": access.prefect, "PREFECT_API_AUTH_STRING": access.prefect}
    if access.mlflow:
        user, _, password = access.mlflow.partition(":")
        settings = home() / "mlflow-auth.ini"
        users = str(home() / MLFLOW_USERS).replace("%", "%%")  # an .ini file's way to write one
        # What no rule of MLflow's speaks of is refused: its default is to let everybody do it.
        variables |= {"MLFLOW_AUTH_ADMIN_USERNAME": user, "MLFLOW_AUTH_ADMIN_PASSWORD": password, "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true"}
        variables["MLFLOW_FLASK_SERVER_SECRET_KEY"] = os.environ.get("MLFLOW_FLASK_SERVER_SECRET_KEY") or secrets.token_hex(32)
        variables["MLFLOW_AUTH_CONFIG_PATH"] = os.environ.get("MLFLOW_AUTH_CONFIG_PATH") or str(settings)
        settings.write_text(
            "# Written by `pul up`, which gives the first user's name and password by the environment.\n"
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{users}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
    return variables


def check_locked(server: str, url: str, login: str | None) -> None:
    """Make sure that a server refuses whoever gives no password and takes the one of the environment.

    Args:
        server: one of `WAYS_IN`.
        url: where it is, without a path.
        login: ``user:password``; None if it is to ask nobody.

    Raises:
        UpError: it does not do so.
    """
    if login is None:
        return
    if status_of(url + WAYS_IN[server]) != 401:
        raise UpError(f"{server}'s server lets everybody in although a password is set: it is stopped again")
    if status_of(url + WAYS_IN[server], login) != 200:
        known = home() / MLFLOW_USERS
        why = f"it keeps the one it was first given: give that, or delete {known}" if server == "MLflow" else "see its log"
        raise UpError(f"{server}'s server does not take the user and password of the environment: {why}")


def status_of(url: str, login: str | None = None) -> int:
    """Return the HTTP status of a GET, with ``user:password`` if given."""
    request = urllib.request.Request(url)
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _is_loopback(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UpError(f"--host {host} is no address of this machine") from error
    return all(ipaddress.ip_address(str(address[4][0]).partition("%")[0]).is_loopback for address in found)
