"""The cache key of a step: everything its result follows from, and nothing else."""

import sys
import textwrap

import pytest

from tasks.engine import steps
from tasks.engine.steps import code_digest, identity, step_key
from tasks.store.artifacts import Artifact
from tasks.store.references import Compute, ImageSet, Pixels

ARTIFACT = Artifact(kind="features", uri="features/ab.parquet", sha256="ab" * 32, rows=3)
COMPUTE = Compute(device="cpu", threads=2, bf16_inference=False, bf16_training=False)


def features(model, seed):
    """Stand for a step."""


def key(**changes):
    return step_key(features, {"model": ARTIFACT, "seed": 0, "compute": COMPUTE, "settings": {"a": 1, "b": [2, 3.5]}} | changes)


def test_a_key_repeats():
    assert key() == key()


@pytest.mark.parametrize(
    "change",
    [
        {"model": ARTIFACT.model_copy(update={"sha256": "cd" * 32})},
        {"seed": 1},
        {"settings": {"a": 1, "b": [2, 3.25]}},
        {"compute": COMPUTE.model_copy(update={"threads": 1})},
        {"compute": COMPUTE.model_copy(update={"bf16_inference": True})},
    ],
)
def test_what_matters_changes_the_key(change):
    assert key(**change) != key()


def test_where_a_file_lies_and_how_long_it_took_does_not_matter():
    assert key(model=ARTIFACT.model_copy(update={"uri": "elsewhere", "seconds": 9.0})) == key()
    images = ImageSet(name="a", root="/a", layout="folder", images=ARTIFACT, labels=None, splits={})
    assert key(images=images) == key(images=images.model_copy(update={"root": "/b", "name": "b"}))


def test_labels_are_no_part_of_a_set_of_images():
    images = ImageSet(name="a", root="/a", layout="market1501", images=ARTIFACT, labels=ARTIFACT, splits={})
    assert key(images=images) == key(images=images.model_copy(update={"labels": ARTIFACT.model_copy(update={"sha256": "ff" * 32})}))


def test_input_size_is_part_of_decoded_images():
    pixels = Pixels(decoded=ARTIFACT, pixels=ARTIFACT, height=64, width=32)
    assert identity(pixels) != identity(pixels.model_copy(update={"height": 32, "width": 64}))


def test_a_library_version_changes_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(steps.importlib.metadata, "version", lambda library: "0.0")
    assert key() != before


def test_arrays_are_refused_as_inputs():
    import numpy as np

    with pytest.raises(TypeError, match="plain value or a reference"):
        key(model=np.zeros(3))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `tasks`-like of two modules, the second imported by the first; returns a function that rewrites the second."""
    folder = tmp_path / "probe_project"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "step.py").write_text("from probe_project.core import f\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(steps, "PROJECT", ("probe_project",))

    def rewrite(source: str) -> str:
        (folder / "core.py").write_text(textwrap.dedent(source))
        for name in [name for name in sys.modules if name.startswith("probe_project")]:
            del sys.modules[name]
        code_digest.cache_clear()
        steps._tree.cache_clear()
        return code_digest("probe_project.step")

    yield rewrite
    code_digest.cache_clear()
    steps._tree.cache_clear()


def test_code_that_a_step_reaches_counts_and_comments_do_not(package):
    before = package('def f(x):\n    """Say what."""\n    return x + 1\n')
    assert package('def f(x):\n    """Say it better."""\n    # why\n    return x + 1\n') == before
    assert package('def f(x):\n    """Say what."""\n    return x + 2\n') != before


def test_training_reaches_the_core_and_not_the_tracking():
    reached = steps._reached("tasks.training")
    assert {
        "pul_core.learning.training",
        "pul_core.learning.memory",
        "pul_core.learning.batches",
        "pul_core.learning.backbone",
    } <= reached
    assert not any("tracking" in name or "synth" in name for name in reached)
