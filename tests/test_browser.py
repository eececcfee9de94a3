"""In a real browser: the UIs of Prefect and MLflow, with the form, the task graph and the tables of iterations, and the report.

With PUL_SCREENSHOTS=FOLDER screenshots of the pages are saved there, for the documentation.
"""

import json
import os
import re
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


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page in a context of its own, without cookies and a cache of earlier tests."""
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(180_000)  # on a busy machine
        yield page


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


@pytest.fixture(scope="module")
def report(finished_run, up, tmp_path_factory):
    """A report of the finished run with pictures, made by the command while `pul up` runs."""
    file = tmp_path_factory.mktemp("report") / "report.html"
    command = [BIN / "pul", "report", finished_run.name, "--with-images", "--out", file]
    done = subprocess.run(command, cwd=finished_run.folder, env={}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and "not linked" not in done.stderr, done.stdout + done.stderr
    return file


LEGENDS_OUTSIDE = """[...document.querySelectorAll(".chart")].filter((chart) => {
  const plot = chart.querySelector(".role-frame > g > path.background").getBoundingClientRect();
  const svg = chart.querySelector("svg").getBoundingClientRect();
  const texts = [...chart.querySelectorAll(".role-legend text")].map((text) => text.getBoundingClientRect());
  return texts.some((text) => text.top < plot.bottom || text.bottom > svg.bottom || text.left < svg.left || text.right > svg.right);
}).map((chart) => chart.id)"""


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_report_shows_its_figures_and_requests_nothing(report, page, width, scheme):
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    charts = page.locator(".chart")
    names = [charts.nth(at).get_attribute("id") for at in range(charts.count())]
    assert {name.partition("-")[2].partition("-")[2] for name in names} == {
        "reliable",
        "scores",
        "oracle",
        "sizes",
        "cosines",
        "map",
        "time",
    }
    for name in names:
        assert page.locator(f"#{name} svg path").count() > 5, name
        assert page.locator(f"figure:has(#{name}) details").count() == 1, "each chart has its table"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page does not scroll sideways"
    assert page.evaluate(LEGENDS_OUTSIDE) == [], "each legend is below its chart and not cut"
    assert (
        page.evaluate("Math.min(...[...document.querySelectorAll('.picture')].map((e) => parseFloat(getComputedStyle(e).fontSize)))") >= 12
    )
    assert page.locator(".picture.right img").count() and page.locator(".picture.wrong img").count()
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth)")
    assert problems == [] and all(url.startswith(("data:", "file:")) for url in requests)


def test_the_slider_and_the_menu_of_the_map_change_the_map_and_its_table(report, page):
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-drawn]")
    chart, figure = page.locator("#chart-run0-map"), page.locator("figure:has(#chart-run0-map)")
    figure.locator("summary").click()
    rows = figure.locator("td")
    before = chart.inner_html(), rows.nth(1).inner_text()
    chart.locator("input[type=range]").fill("0")
    page.wait_for_timeout(500)
    after = chart.inner_html(), rows.nth(1).inner_text()
    assert before[0] != after[0] and before[1] != after[1]
    chart.locator("select").select_option(label="reliable or not")
    page.wait_for_timeout(500)
    assert {"reliable"} <= set(chart.locator("text").all_text_contents())
    page.set_viewport_size({"width": 390, "height": 900})
    for colour in chart.locator("option").all_text_contents():
        chart.locator("select").select_option(label=colour)
        page.wait_for_timeout(500)
        assert page.evaluate(LEGENDS_OUTSIDE) == [], colour


def test_the_report_is_logged_to_mlflow_and_linked_from_prefect_beside_the_curves(report, up, finished_run, page):
    _, (port, mlflow_port) = up
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/artifacts/filter",
        json.dumps({"artifacts": {"flow_run_id": {"any_": [finished_run.flow_run_id]}}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        artifacts = {artifact["key"]: artifact for artifact in json.load(answer)}
    assert artifacts["pul-curves"]["data"].startswith("data:image/png;base64,")
    link = re.search(r"\((http[^)]*)\)", artifacts["pul-report"]["data"])[1]
    assert link.startswith(f"http://127.0.0.1:{mlflow_port}/")
    page.goto(link)
    page.frame_locator("iframe").get_by_text("Reliable set").first.wait_for()


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
