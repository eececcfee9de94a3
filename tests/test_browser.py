"""The UIs of Prefect and MLflow in a real browser: the form, the task graph and the tables of iterations.

With PUL_SCREENSHOTS=FOLDER screenshots of the pages are saved there, for the documentation.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")]

BIN = Path(sys.executable).parent
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def completed_run(finished_run):
    """The id of a completed flow run: of the demo, for better screenshots, if they are saved."""
    if not os.environ.get("PUL_SCREENSHOTS"):
        return finished_run.flow_run_id
    command = [BIN / "prefect", "deployment", "run", "pul/iterate", "--watch"]
    done = subprocess.run(command, cwd=finished_run.folder, env={}, capture_output=True, text=True, timeout=900, check=True)
    return done.stdout.split("UUID: ")[1].split()[0]


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(180_000)  # on a busy machine
        yield page
        browser.close()


def save(page, name):
    if folder := os.environ.get("PUL_SCREENSHOTS"):
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(folder, f"{name}.png"))


def test_prefect_shows_the_graph_and_the_table(up, completed_run, graph, page):
    _, (port, _) = up
    nodes = graph(f"http://127.0.0.1:{port}/api", completed_run)
    assert 0 < sum(len(node["children"]) for node in nodes.values()) < 500, "Prefect draws no arrows in a graph with more edges"
    page.goto(f"http://127.0.0.1:{port}/runs/flow-run/{completed_run}")
    page.get_by_text("Completed").first.wait_for()
    save(page, "prefect-run")
    page.get_by_text("Task Runs", exact=True).first.click()
    page.get_by_text("fine-tune-1", exact=False).first.wait_for()
    page.goto(f"http://127.0.0.1:{port}/artifacts/key/pul-iterations")
    page.get_by_text("pul-iterations").first.wait_for()
    save(page, "prefect-iterations")


def test_mlflow_compares_the_iterations_of_a_run(up, completed_run, page, monkeypatch):
    folder, (_, port) = up
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/.pul/mlflow.db")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/.pul/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`pul.flow_run_id` = '{completed_run}' and tags.`pul.kind` = 'iteration'")
    assert len(runs) >= 3
    ids = json.dumps([run.info.run_id for run in runs])
    experiment = runs[0].info.experiment_id
    page.goto(f'http://127.0.0.1:{port}/#/compare-runs?runs={ids}&experiments=["{experiment}"]')
    page.get_by_text("reliable_fraction").first.wait_for()  # only the first rows of the table are rendered, so not reliable_set_size
    page.get_by_text("Comparing").first.wait_for()
    save(page, "mlflow-compare")


def test_prefect_draws_the_whole_form(up, page):
    _, (port, _) = up
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/deployments/name/pul/iterate") as answer:
        deployment = json.load(answer)
    schema = deployment["parameter_openapi_schema"]
    sections = [
        part["$ref"].split("/")[-1]
        for field in schema["properties"].values()
        for part in (field, *field.get("allOf", []))
        if "$ref" in part
    ]
    definitions = [schema["definitions"][name] for name in sections]
    fields = [*schema["properties"].values(), *definitions, *(field for each in definitions for field in each["properties"].values())]
    page.goto(f"http://127.0.0.1:{port}/deployments/deployment/{deployment['id']}/run")
    descriptions = Counter(" ".join(field["description"].split()) for field in fields if "description" in field)
    for description, times in descriptions.items():
        elements = page.get_by_text(description, exact=True)
        elements.nth(times - 1).wait_for()
        assert elements.count() == times, description
