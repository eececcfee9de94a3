"""What the environment does to `pul`: proxies, URLs, names of folders, locks, hidden processes, closed outputs and foreign modules."""

import http.server
import json
import os
import random
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import httpx
import psutil
import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.access import UpError, http_status
from deployments.environment import active_server, bypass_proxy, configure, up_is_running, up_lock, use_server
from deployments.servers import _check_free, check_prefect_database, prepare_flow_run, run_servers, server_answers
from pul_core.errors import UserError
from tasks.preflight import check_plan
from tasks.store.artifacts import check_artifact_root
from tasks.store.config import resolve_plan
from tasks.store.home import WORKING_FOLDER, user_path

ROOT = Path(__file__).parent.parent
CLOSED = "http://127.0.0.1:9"  # a proxy that accepts no connection
PROXY_NAMES = [name for proxy in ("http_proxy", "https_proxy", "all_proxy") for name in (proxy, proxy.upper())]
CHECKED = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_API_KEY", "PUL_ARTIFACTS", "PREFECT_HOME", "PREFECT_PROFILES_PATH")


@pytest.fixture(autouse=True)
def environment(home, tmp_path, monkeypatch):
    """The environment variables of this process, put back afterwards, without proxies and without those that `configure` sets."""
    before = dict(os.environ)
    for name in (*PROXY_NAMES, "no_proxy", "NO_PROXY", *CHECKED):
        os.environ.pop(name, None)
    monkeypatch.chdir(tmp_path)
    urllib.request.install_opener(None)  # it remembers the proxies of the first request of a process
    yield os.environ
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def local_server():
    """The URL of a server on this machine that answers everything with 200."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- proxies


@given(
    proxies=st.dictionaries(st.sampled_from(PROXY_NAMES), st.sampled_from([CLOSED, "127.0.0.1:9", f"{CLOSED}/"]), min_size=1),
    listed=st.dictionaries(st.sampled_from(["no_proxy", "NO_PROXY"]), st.sampled_from(["", "a.example", ".corp, 10.0.0.0/8", "*"])),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_this_machine_is_never_behind_a_proxy(local_server, proxies, listed):
    for name in (*PROXY_NAMES, "no_proxy", "NO_PROXY"):
        os.environ.pop(name, None)
    os.environ.update(proxies | listed)
    configure()
    port = local_server.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{port}/"
        assert server_answers(url) and http_status(url) == 200
        assert httpx.get(url).status_code == requests.get(url, timeout=5).status_code == 200
    for text in listed.values():
        assert set(filter(None, text.replace(" ", ",").split(","))) <= set(os.environ["no_proxy"].split(","))
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"]


def test_other_machines_stay_behind_the_proxy():
    os.environ["http_proxy"] = CLOSED
    configure()
    with pytest.raises(httpx.ConnectError):  # of the proxy; without it, the name would not be found
        httpx.get("http://prefect.example/api/health")
    assert requests.utils.get_environ_proxies("http://prefect.example/")["http"] == CLOSED


def test_without_a_proxy_nothing_is_set_and_an_address_of_this_machine_can_be_added():
    configure()
    bypass_proxy("192.0.2.7")
    assert "no_proxy" not in os.environ
    os.environ["HTTPS_PROXY"] = CLOSED
    bypass_proxy("192.0.2.7")
    assert os.environ["no_proxy"] == "192.0.2.7"


@pytest.mark.parametrize("proxy", ["socks4://127.0.0.1:9", "ftp://127.0.0.1:9", "socks5://127.0.0.1:9", "socks5h://127.0.0.1:9"])
def test_a_proxy_that_the_client_of_prefect_does_not_support_is_ignored_with_a_line(monkeypatch, capsys, local_server, proxy):
    monkeypatch.setattr("deployments.environment.find_spec", lambda name: None)
    os.environ["ALL_PROXY"] = proxy
    configure()
    assert httpx.get(local_server).status_code == 200
    assert capsys.readouterr().err.startswith("pul: ALL_PROXY is ignored") and "ALL_PROXY" not in os.environ


@pytest.mark.parametrize(
    ("proxy", "is_used"),
    [
        ("http://127.0.0.1:abc", False),
        ("127.0.0.1:70000", False),
        ("http://[::1", False),
        (":", False),
        ("http://", False),
        ("http://a b:9", False),
        ("127.0.0.1:9", True),
        (" http://127.0.0.1:9 ", True),
        ("HTTP://[::1]:9", True),
    ],
)
def test_what_is_no_address_of_a_proxy_is_ignored_with_a_line(capsys, local_server, proxy, is_used):
    os.environ["http_proxy"] = proxy
    configure()
    assert httpx.get(local_server).status_code == 200
    line = capsys.readouterr().err
    assert ("http_proxy" in os.environ) == is_used and bool(line) != is_used
    assert is_used or line == "pul: http_proxy is ignored, because it is not the address of a proxy: set it to http://HOST:PORT\n"


def test_blanks_around_a_variable_do_not_matter(home):
    os.environ |= {"MLFLOW_TRACKING_URI": " http://127.0.0.1:9 ", "PREFECT_API_URL": "http://127.0.0.1:9/api\n"}
    configure()
    assert (os.environ["MLFLOW_TRACKING_URI"], os.environ["PREFECT_API_URL"]) == ("http://127.0.0.1:9", "http://127.0.0.1:9/api")


def test_a_blank_home_is_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.environ["PUL_HOME"] = "  "
    assert configure() == tmp_path / ".pul"


# --- variables that only a library would look at


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MLFLOW_TRACKING_URI", "localhost:5000", "MLFLOW_TRACKING_URI=localhost:5000 is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "./mlruns", "is not a server or a database: set it to http"),
        ("MLFLOW_TRACKING_URI", "file:///tmp/mlruns", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "htp://host:5000", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "http://", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "sqlite://", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "oracle://ana:secret@host/x", "MLFLOW_TRACKING_URI=oracle://host/x is not"),
        ("MLFLOW_TRACKING_URI", "sqlite:////", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "http://host:abc", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "http://[::1", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "https://host:99999", "is not a server or a database"),
        ("MLFLOW_TRACKING_URI", "sqlite:///:memory:", "is not a server or a database"),
        ("PREFECT_API_URL", "http://local host/api", "is not the URL of a server"),
        ("PREFECT_API_URL", "ftp://host/api", "is not the URL of a server"),
        ("PREFECT_API_URL", "http://host:4200/API/", "set it to http://host:4200/api"),
        ("PUL_HOME", "s3://bucket/pul", "is a URL: set PUL_HOME to a folder of this machine"),
        ("PREFECT_API_URL", "localhost:4200/api", "is not the URL of a server: set it to http://HOST:PORT/api"),
        ("PREFECT_API_URL", "http:///api", "is not the URL of a server"),
        ("PREFECT_API_URL", "http://[::1/api", "is not the URL of a server"),
        ("PREFECT_API_URL", "http://host:port/api", "is not the URL of a server"),
        ("PREFECT_API_URL", "http://host:4200", "set it to http://host:4200/api"),
        ("PREFECT_API_URL", "http://host:4200/", "set it to http://host:4200/api"),
        ("PUL_HOME", "a?b", "has a character that a database URL cannot have"),
        ("PUL_HOME", "a%41b", "has a character that a database URL cannot have"),
        ("PUL_HOME", "a\nb", "has a character that a database URL cannot have"),
        ("PUL_HOME", "~nobody-has-this-name/x", "is not a path"),
        ("PUL_HOME", "a" * 300, "cannot be created"),
    ],
)
def test_an_unusable_value_is_reported_in_one_line(name, value, message):
    os.environ[name] = value
    with pytest.raises(UserError) as error:
        configure()
    assert message in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("model", {"backbone": "ResNet-50"}, "there is no backbone 'ResNet-50': choose another, e.g. resnet50"),
        ("model", {"backbone": "osnet_x2_0"}, "there is no backbone 'osnet_x2_0': choose another, e.g. osnet_x1_0"),
        ("model", {"backbone": ""}, "there is no backbone ''"),
        ("model", {"backbone": "hf-hub:nobody/x"}, "there is no backbone"),
        (
            "model",
            {"backbone": "vit_small_patch16_224", "width": 40},
            "divides images into patches of 16 x 16 pixels, but images of 64 x 40 pixels were requested: choose multiples",
        ),
        ("model", {"backbone": "efficientformer_l1"}, "does not accept images of 64 x 32 pixels"),
        ("model", {"backbone": "resnet50_clip"}, "does not accept images of 64 x 32 pixels"),
        ("model", {"backbone": "inception_v3"}, "does not accept images of 64 x 32 pixels"),
        ("model", {"backbone": "vgg11", "height": 256, "width": 128}, "layers between its pooling and its classifier"),
        ("model", {"backbone": "mobilenetv3_large_100"}, "layers between its pooling and its classifier"),
        ("model", {"weights": "imagnet"}, "there are no weights 'imagnet': give imagenet, imagenet-packaged, random or an existing file"),
        ("model", {"weights": ""}, "there are no weights ''"),
        ("model", {"weights": "/nowhere/x.pth"}, "there are no weights '/nowhere/x.pth'"),
        ("model", {"weights": "imagenet-packaged"}, "imagenet-packaged has weights for mobilenetv2_100 only, got test_resnet"),
        (
            "model",
            {"backbone": "resnet50.nobody", "weights": "imagenet"},
            "there is no backbone 'resnet50.nobody': choose another, e.g. resnet50",
        ),
        ("machine", {"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ("machine", {"device": ""}, "there is no device ''"),
    ],
)
def test_a_setting_that_only_a_library_reads_is_checked_first(home, tiny, section, settings, message):
    parameters = tiny | {"source": "x", "target": "x", section: tiny[section] | settings}
    with pytest.raises(UserError) as error:
        check_plan(resolve_plan(parameters))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_settings_that_can_be_used_pass(home, tiny):
    check_plan(resolve_plan(tiny | {"source": "x", "target": "x"}))
    for model in (
        {"backbone": "vit_tiny_patch16_224", "height": 224, "width": 224},
        {"backbone": "swin_tiny_patch4_window7_224"},
        {"backbone": "mobilenetv2_100", "weights": "imagenet"},
    ):
        check_plan(resolve_plan(tiny | {"source": "x", "target": "x", "model": tiny["model"] | model}))


def test_more_threads_than_cores_are_possible_but_reported(home, tiny, caplog):
    check_plan(resolve_plan(tiny | {"source": "x", "target": "x", "machine": {"threads": 1024}}))
    assert "1024 threads share" in caplog.text


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PUL_ARTIFACTS"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_is_like_one_that_is_not_set(home, name, value):
    os.environ[name] = value
    configure()
    assert os.environ.get(name) == {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db"}.get(name)


@pytest.mark.parametrize(
    ("name", "value", "resolved"),
    [
        ("MLFLOW_TRACKING_URI", "sqlite:///x.db", "sqlite:///{cwd}/x.db"),
        ("MLFLOW_TRACKING_URI", "sqlite:////x.db?timeout=5", "sqlite:////x.db?timeout=5"),
        ("MLFLOW_TRACKING_URI", "https://mlflow.example/", "https://mlflow.example/"),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg2://a:b@host/x", "postgresql+psycopg2://a:b@host/x"),
        ("PUL_ARTIFACTS", "store", "{cwd}/store"),
        ("PUL_ARTIFACTS", "~/store", "{home}/store"),
        ("PUL_ARTIFACTS", "s3://bucket/store", "s3://bucket/store"),
        (
            "PREFECT_API_URL",
            "https://api.prefect.cloud/api/accounts/1/workspaces/2",
            "https://api.prefect.cloud/api/accounts/1/workspaces/2",
        ),
        ("PUL_HOME", "here", "{cwd}/here"),
        ("PUL_HOME", "", "{cwd}/.pul"),
        ("PUL_HOME", "~/there", "{home}/there"),
    ],
)
def test_relative_places_are_made_absolute_because_services_run_elsewhere(tmp_path, name, value, resolved):
    os.environ |= {name: value, "HOME": str(tmp_path)}
    configure()
    assert os.environ[name] == resolved.format(cwd=tmp_path, home=tmp_path)


@pytest.mark.parametrize("url", ["nonsense://x", "s3a-unknown://bucket", "/proc/none", "{file}/below", "simplecache::nonsense://x"])
def test_artifacts_that_cannot_be_written_are_reported_in_one_line(tmp_path, url):
    (tmp_path / "file").touch()
    os.environ["PUL_ARTIFACTS"] = url.format(file=tmp_path / "file")
    with pytest.raises(UserError, match=r"artifacts cannot be written to .*: set PUL_ARTIFACTS to another place"):
        check_artifact_root()


def test_an_artifact_root_that_can_be_written_is_left_as_it_was(home):
    os.environ["PUL_ARTIFACTS"] = "memory://test-environment"
    check_artifact_root()
    del os.environ["PUL_ARTIFACTS"]
    check_artifact_root()
    assert list((home / "artifacts").iterdir()) == []


# Every odd character in one of a few names, because the database of each takes seconds.
ODD_NAMES = ["50%off #a;b@c", """-n ü'x q"y [a]{b}~ 100%""", "c:d=e,f back\\slash a&b+$x 日本"]


def test_a_home_with_any_other_name_holds_databases_and_artifacts(tmp_path, tmp_path_factory):
    from mlflow.artifacts import download_artifacts
    from mlflow.tracking import MlflowClient

    download = tmp_path_factory.mktemp("download")
    for name in ODD_NAMES:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        os.environ["PUL_HOME"] = str(tmp_path / name)
        folder = configure()
        uri = os.environ["MLFLOW_TRACKING_URI"]
        client = MlflowClient(uri, uri)
        run = client.create_run(client.create_experiment("x", (folder / "mlartifacts").as_uri()))
        client.log_dict(run.info.run_id, {"name": name}, "config.json")
        artifact = download_artifacts(artifact_uri=f"{run.info.artifact_uri}/config.json", dst_path=str(download))
        assert json.loads(Path(artifact).read_text()) == {"name": name}
        assert (folder / "mlflow.db").is_file() and list(folder.glob("mlartifacts/*/artifacts/config.json"))
    assert {path.name for path in tmp_path.iterdir()} == {*ODD_NAMES, "home"}


def test_a_path_in_a_form_is_relative_to_the_folder_of_pul_up(tmp_path):
    assert user_path("crops") == tmp_path / "crops"
    os.environ |= {WORKING_FOLDER: "/somewhere", "HOME": "/home/ana"}
    assert [str(user_path(path)) for path in ("crops", "/abs", "~/crops")] == ["/somewhere/crops", "/abs", "/home/ana/crops"]


# --- the server of `pul up`


LOCK = """
import sys, time
sys.path.insert(0, sys.argv[1])
from deployments.environment import up_lock
with up_lock() as is_free:
    print(is_free, flush=True)
    time.sleep(600)
"""
SERVE = """
import http.server
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def other_up(home):
    """Another process that holds the lock of `pul up`."""
    with subprocess.Popen([sys.executable, "-c", LOCK, str(ROOT)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_a_killed_pul_up_frees_its_lock(other_up):
    assert up_is_running()
    other_up.kill()
    other_up.wait()
    assert not up_is_running()
    with up_lock() as is_free:
        assert is_free and up_is_running()


@pytest.fixture
def prepare(monkeypatch):
    """The function `prepare_flow_run`; what it changes in this process is undone."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("deployments.servers.quieten", lambda: None)
    yield prepare_flow_run
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.fault("a server that is stopped or too busy to answer, while pul up runs", "everybody keeps using it")
def test_a_busy_server_remains_the_server_of_all_commands(other_up, prepare):
    """The server is a real process that is stopped, so that it accepts connections but never answers."""
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/api"
        server.send_signal(signal.SIGSTOP)
        configure()
        use_server(url)
        prepare()
        assert active_server() == url
        assert not server_answers(f"{url}/health", patience=0.1)
        server.kill()


def test_the_server_of_a_killed_pul_up_is_forgotten(home, prepare):
    configure()
    use_server(f"{CLOSED}/api")
    prepare()
    assert active_server() is None


def test_a_server_that_the_user_names_must_answer(home, prepare, local_server):
    os.environ["PREFECT_API_URL"] = f"{CLOSED}/api/"
    configure()
    with pytest.raises(UserError, match=r"PREFECT_API_URL=http://127\.0\.0\.1:9/api does not answer: start that server, or unset"):
        prepare()
    os.environ["PREFECT_API_URL"] = f"{local_server}/api"
    prepare()


def test_a_second_pul_up_in_a_home_is_rejected_in_one_line(other_up, home):
    configure()
    use_server("http://127.0.0.1:4321/api")
    with pytest.raises(UpError, match=rf"pul up is already running in {home} \(http://127.0.0.1:4321/api\): stop it, or set PUL_HOME"):
        run_servers(free_port(), free_port(), "127.0.0.1")
    assert active_server() == "http://127.0.0.1:4321/api"


def free_port():
    return random.SystemRandom().randint(20_000, 30_000)


@pytest.mark.parametrize(
    ("ports", "host", "message"),
    [
        ((4555, 4555), "127.0.0.1", "--prefect-port and --mlflow-port are both 4555: choose two ports"),
        ((0, 4556), "127.0.0.1", "--prefect-port must be from 1 to 65535, got 0"),
        ((4555, 70_000), "127.0.0.1", "--mlflow-port must be from 1 to 65535, got 70000"),
        ((4555, -1), "127.0.0.1", "--mlflow-port must be from 1 to 65535, got -1"),
        ((4555, 4556), "http://localhost", "--host http://localhost is not an address of this machine"),
        ((4555, 4556), "127.0.0.1:4200", "--host 127.0.0.1:4200 is not an address of this machine"),
        ((4555, 4556), "a..b", "--host a..b is not an address of this machine"),
        ((4555, 4556), "x" * 300, "is not an address of this machine"),
    ],
)
def test_ports_and_hosts_are_checked_before_anything_starts(home, ports, host, message):
    configure()
    with pytest.raises(UpError, match=message.replace(".", r"\.")):
        run_servers(*ports, host)
    assert not (home / "logs").exists()


def test_a_privileged_port_is_explained(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("deployments.servers.socket.create_server", refuse)
    with pytest.raises(UpError, match="port 80 may only be used by root: choose a port of at least 1024 with --prefect-port"):
        _check_free("127.0.0.1", 80, "--prefect-port")


def test_pul_up_does_not_start_mlflow_for_a_server_that_runs_elsewhere(home):
    os.environ["MLFLOW_TRACKING_URI"] = "http://mlflow.example:5000"
    configure()
    with pytest.raises(UpError, match="names a server that is already running, but pul up starts one of its own: unset it"):
        run_servers(free_port(), free_port(), "127.0.0.1")


def test_a_database_of_another_version_of_prefect_is_named(home):
    import sqlite3

    configure()
    check_prefect_database()  # there is none
    file = home / "prefect" / "prefect.db"
    file.parent.mkdir()
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE alembic_version (version_num)")
        check_prefect_database()  # it is being created
        database.execute("INSERT INTO alembic_version VALUES ('a3b9c7d2e5f1')")
    check_prefect_database()
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    with pytest.raises(UserError, match=r"prefect\.db was written by a newer version of Prefect"):
        check_prefect_database()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match=r"prefect\.db is damaged"):
        check_prefect_database()


# --- processes that cannot be seen


@pytest.mark.parametrize("error", [psutil.AccessDenied(1), psutil.NoSuchProcess(1), psutil.ZombieProcess(1)])
@pytest.mark.fault("/proc mounted with hidepid", "no command fails")
def test_hidden_processes_do_not_matter(home, prepare, monkeypatch, error):
    from tasks.operations.lost_runs import _is_gone
    from tasks.tracking.runs import process_key

    key = process_key(os.getpid())

    def hide(*_, **__):
        raise error

    configure()
    monkeypatch.setattr(psutil.Process, "cmdline", hide)
    monkeypatch.setattr(psutil.Process, "environ", hide)
    prepare()
    monkeypatch.setattr(psutil, "Process", hide)
    prepare()
    assert not _is_gone(key)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert _is_gone(key.replace(f" {os.getpid()} ", f" {ended.pid} "))
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError()))  # another user's process
    assert not _is_gone(key)


# --- the terminal and the working folder


def run_pul(folder, *arguments, shell="", **variables):
    """Run `pul` in a shell; ``shell`` follows the command, e.g. a pipe."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "PUL_HOME": str(folder / "home"), **variables}
    command = " ".join([sys.executable, "-P", "-m", "deployments.cli", *arguments, shell])
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("shell", "variables"),
    [
        ("", {"LANG": "C", "LC_ALL": "C"}),
        ("", {"PYTHONIOENCODING": "ascii"}),
        ("", {"PYTHONIOENCODING": "latin-1:strict", "TERM": "dumb"}),
        ("", {"HOME": ""}),
        ("| head -1", {}),
        ("| true", {}),
        (">&-", {}),
        ("2>&-", {}),
        ("<&-", {}),
        ("; umask 777", {}),
    ],
)
def test_the_terminal_does_not_matter(tmp_path, shell, variables):
    done = run_pul(tmp_path, "run", "--help", shell=shell, **variables)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == 0 and (shell or "Adapt a model" in done.stdout)


def test_a_message_that_the_terminal_cannot_show_is_escaped(tmp_path):
    done = run_pul(tmp_path, "run", "--target", "nothing", "--config", "'ü±→.json'", PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("pul: \\xfc\\xb1\\u2192.json cannot be read")


def test_there_must_be_a_folder_for_temporary_files(home, monkeypatch):
    def refuse():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", refuse)
    with pytest.raises(UserError, match="there is no folder for temporary files: set TMPDIR"):
        configure()


FOREIGN_MODULES = (
    "tasks",
    "flows",
    "deployments",
    "pul_core",
    "prefect",
    "mlflow",
    "uvicorn",
    "logging",
    "queue",
    "typing",
    "enum",
    "torch",
)


def test_services_of_this_process_import_nothing_from_the_working_folder(home, tmp_path):
    """`python -m` would put the working folder first: Prefect starts its temporary server and its flow runs so."""
    configure()
    for name in FOREIGN_MODULES:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')\n")
    command = [sys.executable, "-m", "uvicorn", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("place", ["folder", "file/below.db", "missing/x.db", "sealed.db"])
def test_a_database_that_cannot_be_written_is_named_at_once(home, tmp_path, monkeypatch, place):
    import mlflow

    from tasks.tracking.client import client

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "sealed.db").touch()
    monkeypatch.setattr(os, "access", lambda path, mode, access=os.access: "sealed" not in str(path) and access(path, mode))
    before = mlflow.get_tracking_uri()
    client.cache_clear()
    try:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / place}")
        with pytest.raises(UserError, match=rf"MLflow's database {tmp_path / place} cannot be written"):
            client()
        mlflow.set_tracking_uri(CLOSED)
        with pytest.raises(UserError, match=rf"MLflow's server at {CLOSED} does not answer .*refused.*: start it, or correct or unset"):
            client()
        mlflow.set_tracking_uri("mysql+pymysql://ana:secret@127.0.0.1:9/x")
        with pytest.raises(UserError, match="MLFLOW_TRACKING_URI requires the package pymysql: install it"):
            client()
    finally:
        mlflow.set_tracking_uri(before)


def test_an_experiment_that_was_deleted_in_mlflow_is_restored_with_a_line(home, mlflow_database, tmp_path, caplog):
    import mlflow

    from tasks.tracking.client import client, get_or_create_experiment

    mlflow_database(tmp_path)
    before = mlflow.get_tracking_uri()
    client.cache_clear()
    try:
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
        first = get_or_create_experiment("source to target")
        client().delete_experiment(first.experiment_id)
        again = get_or_create_experiment("source to target")
        assert again.experiment_id == first.experiment_id and "is restored" in caplog.text
        assert client().create_run(again.experiment_id).info.status == "RUNNING"
    finally:
        mlflow.set_tracking_uri(before)
        client.cache_clear()


def test_two_processes_create_the_database_of_a_new_home(home):
    code = "import sys; sys.path.insert(0, sys.argv[1]); from deployments.environment import configure; configure()\n"
    code += "from tasks.tracking.client import client; print(len(client().search_experiments()))"
    command = [sys.executable, "-c", code, str(ROOT)]
    environment = {name: value for name, value in os.environ.items() if name not in CHECKED}
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    assert [output.strip() for output, _ in outputs] == ["1"] * 2, outputs
