"""Access control of `pul up`: loopback unless passwords are set; 401 without a password, 200 with it, and no password on disk."""

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deployments.access import Access, UpError, check_authentication, http_status, read_access, server_environment

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
    assert read_access(host) == Access(host, None, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "2001:db8::1"])
def test_another_address_needs_both_passwords(host, monkeypatch):
    with pytest.raises(UpError, match="without a password: set PREFECT_API_AUTH_STRING=user:password, MLFLOW_TRACKING_USERNAME"):
        read_access(host)
    set_passwords(monkeypatch)
    assert read_access(host) == Access(host, "ana:secret", "ana:secret")
    for name in ("PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME"):
        with monkeypatch.context() as patch, pytest.raises(UpError):
            patch.setenv(name, "")
            read_access(host)


@pytest.mark.parametrize("text", ["secret", ":secret", "ana:"])
def test_incomplete_credentials_are_rejected(text, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", text)
    with pytest.raises(UpError, match="user:password"):
        read_access("127.0.0.1")


def test_an_unknown_host_is_rejected():
    with pytest.raises(UpError, match=r"--host nowhere\.invalid is not an address of this machine"):
        read_access("nowhere.invalid")


@pytest.mark.parametrize(
    ("host", "url_host"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("192.0.2.7", "192.0.2.7"), ("localhost",) * 2]
)
def test_urls_name_a_host_that_this_machine_reaches(host, url_host):
    assert Access(host, None, None).url_host == url_host


def test_no_password_is_written_down(home, monkeypatch):
    set_passwords(monkeypatch)
    variables = server_environment(read_access("0.0.0.0"))
    assert variables["MLFLOW_AUTH_ADMIN_PASSWORD"] == "secret"
    assert len(variables["MLFLOW_FLASK_SERVER_SECRET_KEY"]) == 64
    files = list(home.rglob("*"))
    assert [file.name for file in files] == ["mlflow-auth.ini"]
    assert b"secret" not in files[0].read_bytes() and b"ana" not in files[0].read_bytes().replace(str(home).encode(), b"")
    assert server_environment(Access("127.0.0.1", None, None)) == {}


def test_pul_up_rejects_a_public_address_in_one_line(tmp_path):
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([BIN / "pul", "up", "--host", "0.0.0.0"], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("pul: --host 0.0.0.0 would let other machines") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".pul" / "logs").exists(), "nothing was started"


# --- real servers


SECRETS = {name: secrets.token_hex(12) for name in ("prefect", "mlflow", "flask")}
LOGIN = {"Prefect": f"ana:{SECRETS['prefect']}", "MLflow": f"ana:{SECRETS['mlflow']}"}


@pytest.fixture(scope="module")
def locked(pul_up_while, mlflow_database, tmp_path_factory):
    """`pul up` on all addresses, with passwords; the directory, the ports, and the variables that hold the passwords."""
    credentials = {
        "PREFECT_API_AUTH_STRING": LOGIN["Prefect"],
        "MLFLOW_TRACKING_USERNAME": "ana",
        "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow"],
    }
    folder = tmp_path_factory.mktemp("locked")
    mlflow_database(folder / ".pul")
    with pul_up_while(folder, "--host", "0.0.0.0", **credentials, MLFLOW_FLASK_SERVER_SECRET_KEY=SECRETS["flask"]) as ports:
        yield folder, ports, credentials


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
def test_requests_get_401_without_the_password_and_200_with_it(locked):
    _, ports, _ = locked
    for server, server_urls in urls(ports).items():
        for url in server_urls:
            name, _, password = LOGIN[server].partition(":")
            wrong = [None, f"{name}:{password[:-1]}", f"x{name}:{password}", f"admin:{password}", "admin:password1234"]
            assert [http_status(url, login) for login in wrong] == [401] * len(wrong), url
            assert http_status(url, LOGIN[server]) == 200, url


@pytest.mark.slow
def test_mlflow_protects_its_artifacts_too(locked):
    _, ports, _ = locked
    for path in (
        "api/2.0/mlflow-artifacts/artifacts",
        "get-artifact?path=x&run_uuid=x",
        "graphql",
        "v1/traces",
        "gateway/x/mlflow/invocations",
    ):
        assert http_status(f"http://127.0.0.1:{ports[1]}/{path}") in (401, 403, 404, 405), path


@pytest.mark.slow
def test_prefect_streams_events_and_logs_only_with_the_password(locked):
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
def test_a_run_works_with_passwords_and_writes_none(locked, tiny, tiny_pair, pul_here, monkeypatch):
    folder, ports, credentials = locked
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def run(*command, **variables):
        return subprocess.run(command, cwd=folder, env=clean | variables, capture_output=True, text=True, timeout=900, check=False)

    data = {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])}
    parameters = json.dumps(tiny | data | {"stopping": {"max_iterations": 1}})
    start = (BIN / "prefect", "deployment", "run", "pul/iterate", "--params", parameters)
    assert run(*start).returncode != 0
    with monkeypatch.context() as patch:
        patch.setenv("PUL_HOME", str(folder / ".pul"))
        rejected = pul_here("run", "--source", tiny_pair[0], "--target", tiny_pair[1])
    assert "requires a password: set PREFECT_API_AUTH_STRING" in rejected
    done = run(*start, "--watch", **credentials)
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
    over_http = run(BIN / "pul", "results", "--json", **credentials, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{ports[1]}")
    results = json.loads(over_http.stdout)
    (written,) = (folder / ".pul" / "runs").iterdir()
    assert (results["run"], results["status"]) == (written.name, "finished")
    table = pq.read_table(written / "iterations.parquet").to_pylist()
    assert [(row["iteration"], row["mAP"]) for row in results["iterations"]] == [(row["iteration"], row["mAP"]) for row in table]
    assert len(table) == 2
    output = "".join((rejected, done.stdout, done.stderr, over_http.stderr)).encode()
    assert password_occurrences(folder, output) == []


def password_occurrences(folder, output):
    """Return the files that contain a password, plain or as encoded in HTTP, with the number of the password."""
    contents = {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()} | {"output": output}
    assert any(file.endswith("prefect-server.log") for file in contents) and any(file.endswith("mlflow-auth.db") for file in contents)
    passwords = [password.encode() for password in SECRETS.values()]
    passwords += [base64.b64encode(login.encode()) for login in LOGIN.values()]
    return [(file, number) for file, content in contents.items() for number, password in enumerate(passwords) if password in content]


@pytest.mark.slow
def test_a_changed_password_is_rejected_with_the_remedy(locked):
    """MLflow stores its first password, so that a changed one would have no effect."""
    _, ports, _ = locked
    with pytest.raises(UpError, match=r"it stores its first one: set that one, or delete .*mlflow-auth\.db"):
        check_authentication("MLflow", f"http://127.0.0.1:{ports[1]}", "ana:another-password")
    with pytest.raises(UpError, match="accepts requests without a password"):
        check_authentication("Prefect", f"http://127.0.0.1:{ports[0]}/api/health?", "ana:secret")
