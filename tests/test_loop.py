"""How the loop wires its steps, every step replaced by a name: which model goes where."""

from types import SimpleNamespace

import pytest

import flows.pul as module
from flows.config import FineTuning, Stopping


@pytest.fixture
def loop(monkeypatch):
    """Run the flow's function and return what each fine-tuning was given."""
    given = []

    def fine_tune(start, _pixels, _reliable, *, settings, iteration, **_):
        given.append((start, settings))
        return SimpleNamespace(model=f"model {iteration}")

    clusters = SimpleNamespace(num_clusters=5, clusters=SimpleNamespace(rows=100))
    steps = {
        "index": SimpleNamespace(images=None, labels=None, splits=["train"], scorable=False),
        "cluster": clusters,
        "select": SimpleNamespace(size=50),
        "track_run": SimpleNamespace(name="run"),
        "original_model_of": ("original", {}),
    }
    for name in ("resolve_compute", "check_sets", "reveal", "decode", "extract_features", "track_iteration", "finish_run"):
        steps[name] = None
    for name, result in steps.items():
        monkeypatch.setattr(module, name, lambda *_, result=result, **__: result)
    monkeypatch.setattr(module, "fine_tune", fine_tune)
    monkeypatch.setattr(module, "Iteration", lambda **parts: SimpleNamespace(**({"reliable": None} | parts)))

    def run(**fine_tuning):
        stopping = Stopping(max_iterations=3, stop_when_stable=False)
        parameters = {"source": None, "original_model": "model.pth", "recipe": "paper", "seed": 0}
        module.pul.fn(target="crops", fine_tuning=FineTuning(**fine_tuning), stopping=stopping, **parameters)
        return given

    return run


@pytest.mark.parametrize(
    ("parameters", "starts"),
    [
        ({}, ["original", "original", "original"]),
        ({"start_from": "original"}, ["original", "original", "original"]),
        ({"start_from": "last"}, ["original", "model 1", "model 2"]),
    ],
)
def test_fine_tuning_starts_where_it_is_told(loop, parameters, starts):
    assert [start for start, _ in loop(**parameters)] == starts


def test_a_first_iteration_is_the_same_step_wherever_the_next_ones_start(loop):
    """So a sweep over both finds it in the cache."""
    loop(start_from="original", loss="cluster_memory")
    first, _, _, again, _, _ = loop(start_from="last", loss="cluster_memory")
    assert first == again
    assert first[1]["loss"] == "cluster_memory"
