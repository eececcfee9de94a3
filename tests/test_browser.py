"""The two UIs in a real browser, looked at as a user looks: the form, the graph's tasks, the tables of iterations.

With PUL_SCREENSHOTS=FOLDER the pages are also saved there, as pictures for the documents.
"""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
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
def finished(up, tiny, tiny_pair):
    """A finished run; returns its flow run's id."""
    folder, _ = up
    parameters = tiny | {"source": str(tiny_pair[0]), "target": str(tiny_pair[1])}
    if os.environ.get("PUL_SCREENSHOTS"):
        parameters = {}  # the demo, which is nicer to look at
    command = [BIN / "prefect", "deployment", "run", "pul/iterate", "--params", json.dumps(parameters), "--watch"]
    done = subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, timeout=900, check=True)
    return done.stdout.split("UUID: ")[1].split()[0]


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(180_000)  # a busy machine
        yield page
        browser.close()


def save(page, name):
    if folder := os.environ.get("PUL_SCREENSHOTS"):
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(folder, f"{name}.png"))


def test_prefect_shows_the_graph_and_the_table(up, finished, graph, page):
    _, (port, _) = up
    nodes = graph(f"http://127.0.0.1:{port}/api", finished)
    assert 0 < sum(len(node["children"]) for node in nodes.values()) < 500, "what is drawn is a canvas; with more edges it has no arrows"
    page.goto(f"http://127.0.0.1:{port}/runs/flow-run/{finished}")
    page.get_by_text("Completed").first.wait_for()
    save(page, "prefect-run")
    page.get_by_text("Task Runs", exact=True).first.click()
    page.get_by_text("fine-tune-1", exact=False).first.wait_for()
    page.goto(f"http://127.0.0.1:{port}/artifacts/key/pul-iterations")
    page.get_by_text("pul-iterations").first.wait_for()
    save(page, "prefect-iterations")


def test_mlflow_compares_the_iterations_of_a_run(up, finished, page, monkeypatch):
    folder, (_, port) = up
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/.pul/mlflow.db")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/.pul/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`pul.flow_run_id` = '{finished}' and tags.`pul.kind` = 'iteration'")
    assert len(runs) >= 3
    ids = json.dumps([run.info.run_id for run in runs])
    experiment = runs[0].info.experiment_id
    page.goto(f'http://127.0.0.1:{port}/#/compare-runs?runs={ids}&experiments=["{experiment}"]')
    page.get_by_text("reliable_fraction").first.wait_for()  # the page draws the first rows of its table; reliable_set_size is further down
    page.get_by_text("Comparing").first.wait_for()
    save(page, "mlflow-compare")


def test_prefect_offers_every_parameter_in_a_form_with_what_it_means(up, page):
    _, (port, _) = up
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/deployments/name/pul/iterate") as answer:
        deployment = json.load(answer)
    page.goto(f"http://127.0.0.1:{port}/deployments/deployment/{deployment['id']}/run")
    page.get_by_text("Independent Share").first.wait_for()
    shown = " ".join(page.locator("body").inner_text().split())
    properties = deployment["parameter_openapi_schema"]["definitions"].values()
    meanings = [field["description"] for definition in properties for field in definition["properties"].values()]
    assert len(meanings) > 50 and [meaning for meaning in meanings if " ".join(meaning.split()) not in shown] == []
    save(page, "prefect-form")
