"""Who may reach the servers of `pul up`: loopback unless passwords are set; 401 without them, 200 with, and no trace of them on disk."""

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.access import Access, UpError, access_of, check_locked, server_environment, status_of

BIN = Path(sys.executable).parent
PASSWORDS = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture(autouse=True)
def no_passwords(monkeypatch):
    for name in PASSWORDS:
        monkeypatch.delenv(name, raising=False)


def set_passwords(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "ana:secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_password(host):
    assert access_of(host) == Access(host, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1"])
def test_another_address_needs_both_passwords(host, monkeypatch):
    with pytest.raises(UpError, match="without a password: set PREFECT_API_AUTH_STRING=user:password, MLFLOW_TRACKING_USERNAME"):
        access_of(host)
    set_passwords(monkeypatch)
    assert access_of(host) == Access(host, "ana:secret", "ana:secret")
    for name in ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME"):
        with monkeypatch.context() as patch, pytest.raises(UpError):
            patch.setenv(name, "")
            access_of(host)


@pytest.mark.parametrize("text", ["secret", ":secret", "ana:"])
def test_a_password_without_a_name_is_refused(text, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", text)
    with pytest.raises(UpError, match="user:password"):
        access_of("127.0.0.1")


def test_a_name_that_is_none_is_said():
    with pytest.raises(UpError, match="no address of this machine"):
        access_of("nowhere.invalid")


@pytest.mark.parametrize(
    ("host", "reached_at"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("192.0.2.7", "192.0.2.7"), ("localhost",) * 2]
)
def test_this_machine_finds_the_servers(host, reached_at):
    assert Access(host, None, None).reached_at == reached_at


def test_no_password_is_written_down(home, monkeypatch):
    set_passwords(monkeypatch)
    variables = server_environment(access_of("0.0.0.0"))
    assert variables["MLFLOW_AUTH_ADMIN_PASSWORD"] == "secret"
    assert len(variables["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
    files = list(home.rglob("*"))
    assert [file.name for file in files] == ["mlflow-auth.ini"]
    assert b"secret" not in files[0].read_bytes() and b"ana" not in files[0].read_bytes().replace(str(home).encode(), b"")
    assert server_environment(Access("127.0.0.1", None, None)) == {}


def test_pul_up_refuses_a_public_address_in_one_sentence(tmp_path):
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([BIN / "pul", "up", "--host", "0.0.0.0"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("pul: --host 0.0.0.0 would let other machines") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".pul" / "logs").exists(), "nothing was started"


# --- real servers


SECRETS = {name: secrets.token_hex(12) for name in ("prefect", "mlflow", "flask")}
LOGIN = {"Prefect": f"ana:{SECRETS['prefect']}", "MLflow": f"ana:{SECRETS['mlflow']}"}


def listening(folder):
    """Return the addresses that processes of this directory listen on."""
    addresses = set()
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder):
                addresses |= {(found.laddr.ip, found.laddr.port) for found in process.net_connections("inet") if found.status == "LISTEN"}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return addresses


@pytest.mark.slow
def test_every_server_listens_on_loopback(up):
    folder, ports = up
    addresses = listening(folder)
    assert set(ports) <= {port for _, port in addresses}
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}


@pytest.fixture(scope="module")
def locked(pul_up_while, tmp_path_factory):
    """`pul up` on every address, with passwords; the directory, the ports, and the environment of somebody who knows them."""
    known = {"PREFECT_API_AUTH_STRING": LOGIN["Prefect"], "MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow"]}
    folder = tmp_path_factory.mktemp("locked")
    with pul_up_while(folder, "--host", "0.0.0.0", **known, MLFLOW_FLASK_SERVER_SECRET_KEY=SECRETS["flask"]) as ports:
        yield folder, ports, known


def urls(ports):
    return {
        "Prefect": [
            f"http://127.0.0.1:{ports[0]}/api/{path}" for path in ("admin/version", "admin/settings", "deployments/name/pul/iterate")
        ],
        "MLflow": [
            f"http://127.0.0.1:{ports[1]}/{path}"
            for path in (
                "",
                "api/2.0/mlflow/experiments/get?experiment_id=0",
                "ajax-api/2.0/mlflow/experiments/get?experiment_id=0",
                "api/2.0/mlflow/users/current",
            )
        ],
    }


@pytest.mark.slow
def test_401_without_and_200_with(locked):
    _, ports, _ = locked
    for server, found in urls(ports).items():
        for url in found:
            name, _, password = LOGIN[server].partition(":")
            wrong = [None, f"{name}:{password[:-1]}", f"x{name}:{password}", f"admin:{password}", "admin:password1234"]
            assert [status_of(url, login) for login in wrong] == [401] * len(wrong), url
            assert status_of(url, LOGIN[server]) == 200, url


@pytest.mark.slow
def test_mlflows_files_are_locked_too(locked):
    _, ports, _ = locked
    for path in (
        "api/2.0/mlflow-artifacts/artifacts",
        "get-artifact?path=x&run_uuid=x",
        "graphql",
        "v1/traces",
        "gateway/x/mlflow/invocations",
    ):
        assert status_of(f"http://127.0.0.1:{ports[1]}/{path}") in (401, 403, 404, 405), path


@pytest.mark.slow
def test_events_and_logs_of_prefect_are_not_told_to_anybody(locked):
    import websockets

    _, ports, _ = locked

    async def answer_to(path, token):
        async with websockets.connect(f"ws://127.0.0.1:{ports[0]}/api/{path}", subprotocols=["prefect"]) as socket:
            await socket.send(json.dumps({"type": "auth", "token": token}))
            return json.loads(await socket.recv())["type"]

    for path in ("events/out", "logs/out"):
        assert asyncio.run(answer_to(path, LOGIN["Prefect"])) == "auth_success"
        for wrong in (None, "wrong"):
            with pytest.raises(websockets.exceptions.ConnectionClosed):
                asyncio.run(answer_to(path, wrong))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_works_with_passwords_and_leaves_none_behind(locked, tiny, tiny_pair):
    folder, ports, known = locked
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def typed(*command, **more):
        return subprocess.run(command, cwd=folder, env=clean | more, capture_output=True, text=True, timeout=900, check=False)

    parameters = json.dumps(tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])})
    start = (BIN / "prefect", "deployment", "run", "pul/iterate", "--params", parameters)
    assert typed(*start).returncode != 0
    refused = typed(BIN / "pul", "run", "--source", tiny_pair[0], "--target", tiny_pair[1])
    assert refused.returncode == 1 and "asks for a password: set PREFECT_API_AUTH_STRING" in refused.stderr
    done = typed(*start, "--watch", **known)
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
    over_http = typed(BIN / "pul", "results", "--json", **known, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{ports[1]}")
    assert json.loads(over_http.stdout) == json.loads(typed(BIN / "pul", "results", "--json").stdout)
    assert len(json.loads(over_http.stdout)["iterations"]) == 3
    said = "".join((refused.stderr, done.stdout, done.stderr, over_http.stderr)).encode()
    assert traces(folder, said) == []


def traces(folder, said):
    """Return where a password stands, plainly or as HTTP sends it."""
    written = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()} | {"what was said": said}
    assert any(file.endswith("prefect-server.log") for file in written) and any(file.endswith("mlflow-auth.db") for file in written)
    wanted = [password.encode() for password in SECRETS.values()]
    wanted += [base64.b64encode(login.encode()) for login in LOGIN.values()]
    return [(file, number) for file, text in written.items() for number, password in enumerate(wanted) if password in text]


@pytest.mark.slow
def test_another_password_later_is_refused_with_the_way_out(locked):
    """MLflow keeps the first password: a change without effect would leave the old one in force unnoticed."""
    _, ports, _ = locked
    with pytest.raises(UpError, match=r"it keeps the one it was first given: give that, or delete .*mlflow-auth\.db"):
        check_locked("MLflow", f"http://127.0.0.1:{ports[1]}", "ana:another-password")
    with pytest.raises(UpError, match="lets everybody in"):
        check_locked("Prefect", f"http://127.0.0.1:{ports[0]}/api/health?", "ana:secret")
