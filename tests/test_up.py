"""`pul up` as a user starts it, and `prefect deployment run pul/iterate` from another terminal with a clean environment."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def prefect(folder, *arguments, timeout=540):
    """Run `prefect ...` in the project's directory with an empty environment."""
    return subprocess.run([BIN / "prefect", *arguments], cwd=folder, env={}, capture_output=True, text=True, timeout=timeout, check=False)


def test_the_deployment_completes(finished_run):
    """The folder of `pul up` contains foreign modules with the names of the project's packages (tests/conftest.py)."""
    assert "Completed" in finished_run.printed
    command = [BIN / "pul", "results", finished_run.name, "--json"]
    done = subprocess.run(command, cwd=finished_run.folder, env={}, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    assert (results["run"], results["status"], len(results["iterations"])) == (finished_run.name, "finished", 3)


def test_the_sweep_completes_beside_it(finished_run, tiny, tiny_pair):
    """Its child adapts the model of the finished run, so that no source is trained; test_sweep has sweeps of several children."""
    base = tiny | {"original_model": finished_run.name, "target": str(tiny_pair[1]), "stopping": {"max_iterations": 1}}
    parameters = json.dumps({"base": base, "grid": {"selection.min_similarity": [0.4]}, "seeds": [0]})
    folder = finished_run.folder
    done = prefect(folder, "deployment", "run", "sweep/grid", "--params", parameters, "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout
    (table,) = (folder / ".pul" / "sweeps").glob("*/children.parquet")
    assert pq.read_table(table)["status"].to_pylist() == ["finished"]


def test_the_stored_parameters_are_those_of_the_demo_and_every_field_has_a_description(up):
    _, (port, _) = up
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/deployments/name/pul/iterate") as answer:
        deployment = json.load(answer)
    assert deployment["parameters"]["source"].startswith("synthetic:")
    schema = deployment["parameter_openapi_schema"]
    assert schema["required"] == ["target"]
    for section in ("Training", "Augmentation", "KMeans", "Dbscan"):
        fields = schema["definitions"][section]["properties"].values()
        assert all("description" in field for field in fields if "$ref" not in str(field)), section


def test_mlflow_shows_the_run(up, finished_run):
    _, (_, port) = up
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", b'{"max_results": 10}', {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        assert "source to target" in {experiment["name"] for experiment in json.load(answer)["experiments"]}


def test_a_second_pul_up_on_the_port_is_rejected_in_one_line(up):
    folder, (port, _) = up
    done = subprocess.run([BIN / "pul", "up", "--prefect-port", str(port)], cwd=folder, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pul: port {port} is in use")


def listening(folder):
    """Return the addresses on which processes of this directory listen."""
    addresses = set()
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                connections = process.net_connections("inet")
                addresses |= {(connection.laddr.ip, connection.laddr.port) for connection in connections if connection.status == "LISTEN"}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return addresses


def test_every_server_listens_on_loopback(up):
    folder, ports = up
    addresses = listening(folder)
    assert set(ports) <= {port for _, port in addresses}
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}
