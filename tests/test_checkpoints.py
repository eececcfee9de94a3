"""A long step that dies goes on where it was and ends in the same bytes; what it kept is gone when it is done."""

import numpy as np
import pyarrow as pa
import pytest

from flows.preflight import plan_of
from tasks import extract, training
from tasks.extract import extract_features
from tasks.store.artifacts import read_table, write_table
from tasks.store.readers import open_pixels
from tasks.store.references import Compute, Reliable
from tasks.training import fine_tune

COMPUTE = Compute(device="cpu", threads=1, bf16_inference=False, bf16_training=False)


class KilledError(Exception):
    """Stands for the end of the process."""


def run_training(model, pixels, tiny, **settings):
    rows = open_pixels(pixels)[0][:12]
    reliable = {"row": rows, "pseudo_label": np.arange(12) // 6, "similarity": np.ones(12)}
    plan = plan_of(tiny | {"target": "x"}).model_dump()
    arguments = {"settings": plan["fine_tuning"] | {"epochs": 4} | settings, "seed": 3, "compute": COMPUTE, "iteration": 1}
    return fine_tune.fn(model, pixels, Reliable(reliable=write_table("reliable", pa.table(reliable)), num_classes=2), **arguments)


def dying(function, calls):
    """The function, that ends the process when it has been called so often."""
    count = iter(range(calls))

    def call(*args, **kwargs):
        if next(count, None) is None:
            raise KilledError
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("damage", [None, b"", b"x" * 50])
@pytest.mark.fault(
    "a training dies; its checkpoint is whole, empty or damaged", "goes on after the epoch, or from the start: the same bytes"
)
def test_a_training_goes_on_after_its_last_whole_epoch(home, model, pixels, tiny, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_so_far", dying(training._so_far, 2))
        with pytest.raises(KilledError):
            run_training(model, pixels, tiny)
    (kept,) = home.glob("checkpoints/*/epoch")
    if damage is not None:
        kept.write_bytes(damage)
    trained_epochs = []
    with monkeypatch.context() as patch:
        bare = training.train
        patch.setattr(
            training, "train", lambda *args, **kwargs: (trained_epochs.append(epoch.epoch) or epoch for epoch in bare(*args, **kwargs))
        )
        resumed = run_training(model, pixels, tiny)
    assert trained_epochs == ([3, 4] if damage is None else [1, 2, 3, 4])
    assert not list(home.glob("checkpoints/*"))
    whole = run_training(model, pixels, tiny)
    assert (resumed.model.sha256, resumed.training.sha256) == (whole.model.sha256, whole.training.sha256)
    assert [row["epoch"] for row in read_table(resumed.training).to_pylist()] == [1, 2, 3, 4]


@pytest.mark.parametrize("loss", ["cluster_memory", "image_memory"])
def test_a_training_goes_on_with_its_memory(home, model, pixels, tiny, monkeypatch, loss):
    settings = {"loss": loss, "images_per_class": 2, "start_from": "last"}
    with monkeypatch.context() as patch:
        patch.setattr(training, "_so_far", dying(training._so_far, 2))
        with pytest.raises(KilledError):
            run_training(model, pixels, tiny, **settings)
    assert list(home.glob("checkpoints/*/epoch"))
    resumed, whole, plain = (run_training(model, pixels, tiny, **chosen) for chosen in (settings, settings, {}))
    assert (resumed.model.sha256, resumed.training.sha256) == (whole.model.sha256, whole.training.sha256)
    assert plain.model.sha256 != whole.model.sha256


def test_other_parameters_do_not_go_on_with_it(home, model, pixels, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "_so_far", dying(training._so_far, 1))
        with pytest.raises(KilledError):
            run_training(model, pixels, tiny)
    other = run_training(model, pixels, tiny, batch_size=6)
    assert len(list(home.glob("checkpoints/*"))) == 1
    assert other.model.sha256 == run_training(model, pixels, tiny, batch_size=6).model.sha256


@pytest.mark.fault("an extraction dies", "goes on after its last group: the same bytes")
def test_extraction_keeps_its_finished_groups(home, model, pixels, monkeypatch):
    monkeypatch.setattr(extract, "ROW_GROUP", 8)
    arguments = {"batch_size": 4, "compute": COMPUTE, "iteration": 0, "split": "train"}
    with monkeypatch.context() as patch:
        patch.setattr(extract, "core_extract", dying(extract.core_extract, 3))
        with pytest.raises(KilledError):
            extract_features.fn(model, pixels, **arguments)
    assert len(list(home.glob("checkpoints/*/*"))) == 3
    assert not list(home.glob("artifacts/features/*"))
    with monkeypatch.context() as patch:
        patch.setattr(extract, "core_extract", dying(extract.core_extract, 2))
        resumed = extract_features.fn(model, pixels, **arguments)
    assert not list(home.glob("checkpoints/*"))
    assert resumed.sha256 == extract_features.fn(model, pixels, **arguments).sha256


@pytest.mark.fault("a checkpoint cannot be written", "a warning; the step goes on")
def test_a_checkpoint_that_cannot_be_written_stops_nothing(home, model, pixels, tiny):
    (home / "checkpoints").write_text("no folder")
    assert run_training(model, pixels, tiny).training.rows == 4
