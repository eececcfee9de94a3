"""The wiring of the loop, with a stub for every step: the start of fine-tuning, the statistics of features, and the recipe auto."""

from types import SimpleNamespace

import pytest

import flows.pul as module
from pul_core.errors import UserError
from pul_core.recipes import RECIPES
from pul_core.settings import Memory
from tasks.preflight import Counts
from tasks.store.config import resolve_plan


def counted(num_cameras, images=100):
    return Counts(splits={"train": images}, camera_sizes=(images // 2,) * num_cameras)


@pytest.fixture
def loop(monkeypatch):
    """A function that runs the flow's function and returns start model and settings of every fine-tuning so far.

    The target has no known camera and few images, unless a test sets another `count_usable`; auto is then paper.
    """
    calls = []

    def fine_tune(start, _pixels, _reliable, *, settings, iteration, **_):
        calls.append((start, settings))
        return SimpleNamespace(model=f"model {iteration}")

    clusters = SimpleNamespace(num_clusters=5, clusters=SimpleNamespace(rows=100))
    steps = {
        "index": SimpleNamespace(images=None, labels=None, splits=["train"], scorable=False),
        "cluster": clusters,
        "select": SimpleNamespace(size=50),
        "track_run": SimpleNamespace(
            id="run", original_model="model.pth", resources=SimpleNamespace(training=None, inference=None, analysis=None)
        ),
        "original_model_of": ("original", {}),
    }
    for name in (
        "check_sets",
        "reveal",
        "decode",
        "cameras_of",
        "log_recipe",
        "statistics_of",
        "extract_features",
        "track_iteration",
        "finish_run",
    ):
        steps[name] = None
    for name, result in steps.items():
        monkeypatch.setattr(module, name, lambda *_, result=result, **__: result)
    monkeypatch.setattr(module, "checked_plan", resolve_plan)
    monkeypatch.setattr(module, "count_usable", lambda _: counted(0, images=50))
    monkeypatch.setattr(module, "fine_tune", fine_tune)
    monkeypatch.setattr(module, "Iteration", lambda **parts: SimpleNamespace(**({"reliable": None} | parts)))

    def run(fine_tuning=None, statistics=None, others=None, **model):
        sections = {"model": model, "statistics": statistics, "fine_tuning": fine_tuning} | (others or {})
        stopping = {"max_iterations": 3, "stop_when_stable": False}
        module.pul.fn(target="crops", original_model="model.pth", stopping=stopping, **sections)
        return calls

    return run


@pytest.mark.parametrize(
    ("parameters", "starts"),
    [
        ({}, ["original", "original", "original"]),
        ({"start_from": "original"}, ["original", "original", "original"]),
        ({"start_from": "last"}, ["original", "model 1", "model 2"]),
    ],
)
def test_fine_tuning_starts_from_the_configured_model(loop, parameters, starts):
    assert [start for start, _ in loop(**parameters)] == starts


def test_the_first_iteration_does_not_depend_on_start_from(loop):
    """A sweep over ``start_from`` therefore computes it once."""
    loop({"memory": {"entries": "clusters"}}, start_from="original")
    first, _, _, first_from_last, _, _ = loop({"memory": {"entries": "clusters"}}, start_from="last")
    assert first == first_from_last
    assert first[1].memory == Memory(entries="clusters")


def test_features_have_the_statistics_of_their_model_but_those_of_direct_transfer(loop, monkeypatch):
    extracted, scored = [], []
    target = SimpleNamespace(images="images", labels="labels", splits=["train", "query", "gallery"], scorable=True)
    monkeypatch.setattr(module, "index", lambda *_: target)
    monkeypatch.setattr(module, "statistics_of", lambda model, *_, settings, **__: f"statistics of {model}" if settings.by_camera else None)
    monkeypatch.setattr(
        module, "extract_features", lambda model, _pixels, statistics, split, **_: extracted.append((split, model, statistics))
    )
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: "scores")
    monkeypatch.setattr(module, "track_iteration", lambda _run, iteration, _labels: scored.append(vars(iteration)))
    loop(statistics={"by_camera": True})
    of_train, of_query = ([place[1:] for place in extracted if place[0] == split] for split in ("train", "query"))
    models = ["original", "model 1", "model 2", "model 3"]
    assert of_train == [(model, f"statistics of {model}") for model in models[:3]]
    assert of_query == [("original", None), *((model, f"statistics of {model}") for model in models)]
    assert [iteration.get("scores_statistics") for iteration in scored] == ["scores", None, None, None]

    extracted.clear(), scored.clear()
    loop()
    assert {statistics for *_, statistics in extracted} == {None} and len(extracted) == 3 + 2 * 4
    assert [iteration.get("scores_statistics") for iteration in scored] == [None] * 4


@pytest.mark.parametrize(
    ("counts", "parameters", "recipe"),
    [
        (counted(1), {}, "paper"),
        (counted(0), {}, "modern"),
        (counted(0, images=63), {}, "paper"),
        (counted(0), {"statistics": {"style_groups": 0}}, "paper"),
        (counted(0), {"statistics": {"by_camera": False}}, "paper"),
        (counted(2), {}, "modern"),
        (counted(2, images=20), {}, "paper"),
        (counted(2, images=20), {"dbscan": {"num_neighbours": 9}}, "modern"),
        (counted(2), {"recipe": "auto", "kmeans": {"num_clusters": 9}}, "paper"),
        (counted(0), {"recipe": "modern"}, "modern"),
        (counted(2), {"recipe": "released-code"}, "released-code"),
    ],
)
def test_the_recipe_is_chosen_by_the_cameras_of_the_indexed_target(loop, monkeypatch, counts, parameters, recipe):
    """Every part of the run has the recipe that was chosen: what is checked and tracked, the clusters, and fine-tuning."""
    checked, tracked, clustered = [], [], []
    indexed, result = module.index(), module.track_run()
    monkeypatch.setattr(module, "count_usable", lambda images: counts if images is indexed else pytest.fail("not the target"))
    monkeypatch.setattr(module, "check_sets", lambda _sources, _images, plan: checked.append(plan))
    monkeypatch.setattr(module, "track_run", lambda plan, *_: tracked.append(plan) or result)
    cluster = module.cluster
    monkeypatch.setattr(module, "cluster", lambda *_, **options: clustered.append(options) or cluster())
    fine_tuned = loop(others=parameters)
    assert [plan.recipe for plan in (*checked, *tracked)] == [recipe] * 2
    expected = RECIPES[recipe]
    assert {options["clustering"] for options in clustered} == {expected.clustering}
    assert {type(options["algorithm"]) for options in clustered} == {type(expected.algorithm)}
    assert {options["centre_cameras"] for options in clustered} == {expected.model.centre_cameras}
    assert {settings for _, settings in fine_tuned} == {expected.fine_tuning}


def test_a_recipe_that_is_chosen_later_is_checked_before_anything_is_trained(loop, monkeypatch):
    """As paper the first plan is valid, so only the second check can refuse it."""
    monkeypatch.setattr(module, "count_usable", lambda _: counted(2))

    def checked_plan(parameters, auto="paper"):
        if auto == "modern":
            raise UserError("modern cannot run here")
        return resolve_plan(parameters, auto)

    monkeypatch.setattr(module, "checked_plan", checked_plan)
    monkeypatch.setattr(module, "original_model_of", lambda *_: pytest.fail("trained"))
    with pytest.raises(UserError, match="modern cannot run here"):
        loop()
