"""A step that is killed resumes from its checkpoint and ends with the same bytes; the checkpoint is deleted when the step is done."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from pul_core.settings import Memory
from tasks import extract, training
from tasks.engine.checkpoints import INTERVAL, StepCheckpoint
from tasks.extract import extract_features
from tasks.store.artifacts import read_table, write_table
from tasks.store.readers import open_pixels
from tasks.store.references import Reliable
from tasks.training import fine_tune


class KilledError(Exception):
    """Stands in for the death of the process."""


@pytest.fixture(autouse=True)
def save_every_part(monkeypatch):
    monkeypatch.setenv(INTERVAL, "0")


@pytest.fixture
def run_training(model, pixels, plan, compute):
    """A function that fine-tunes the model with these settings."""

    def run(**settings):
        rows = open_pixels(pixels)[0][:12]
        reliable = {"row": rows, "pseudo_label": np.arange(12) // 6, "similarity": np.ones(12)}
        arguments = {"settings": replace(plan.fine_tuning, **{"epochs": 4} | settings), "seed": 3, "compute": compute, "iteration": 1}
        return fine_tune.fn(model, pixels, Reliable(reliable=write_table("reliable", pa.table(reliable)), num_classes=2), **arguments)

    return run


def dying(function, calls):
    """Wrap a function so that it kills the process after a number of calls."""
    remaining_calls = iter(range(calls))

    def call(*args, **kwargs):
        if next(remaining_calls, None) is None:
            raise KilledError
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize("damage", [None, b"", b"x" * 50])
@pytest.mark.fault(
    "a training is killed; its checkpoint is intact, empty or damaged", "resumes after the epoch, or starts again: the same bytes"
)
def test_a_training_resumes_after_its_last_complete_epoch(home, run_training, monkeypatch, damage):
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingState, "state_dict", dying(training.TrainingState.state_dict, 2))
        with pytest.raises(KilledError):
            run_training()
    (checkpoint,) = home.glob("checkpoints/*/epoch")
    if damage is not None:
        checkpoint.write_bytes(damage)
    trained_epochs = []
    with monkeypatch.context() as patch:
        train = training.train
        patch.setattr(
            training, "train", lambda *args, **kwargs: (trained_epochs.append(epoch.epoch) or epoch for epoch in train(*args, **kwargs))
        )
        resumed = run_training()
    assert trained_epochs == ([3, 4] if damage is None else [1, 2, 3, 4])
    assert not list(home.glob("checkpoints/*"))
    uninterrupted = run_training()
    assert (resumed.model.sha256, resumed.training.sha256) == (uninterrupted.model.sha256, uninterrupted.training.sha256)
    assert [row["epoch"] for row in read_table(resumed.training).to_pylist()] == [1, 2, 3, 4]


@pytest.mark.parametrize("entries", ["clusters", "images"])
def test_a_training_resumes_with_its_memory(home, run_training, monkeypatch, entries):
    settings = {"memory": Memory(entries=entries), "images_per_class": 2}
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingState, "state_dict", dying(training.TrainingState.state_dict, 2))
        with pytest.raises(KilledError):
            run_training(**settings)
    assert list(home.glob("checkpoints/*/epoch"))
    resumed, uninterrupted, without_memory = (run_training(**options) for options in (settings, settings, {}))
    assert (resumed.model.sha256, resumed.training.sha256) == (uninterrupted.model.sha256, uninterrupted.training.sha256)
    assert without_memory.model.sha256 != uninterrupted.model.sha256


def test_a_training_with_other_parameters_ignores_the_checkpoint(home, run_training, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training.TrainingState, "state_dict", dying(training.TrainingState.state_dict, 1))
        with pytest.raises(KilledError):
            run_training()
    other = run_training(batch_size=6)
    assert len(list(home.glob("checkpoints/*"))) == 1
    assert other.model.sha256 == run_training(batch_size=6).model.sha256


@pytest.mark.fault("an extraction is killed", "resumes after its last group: the same bytes")
def test_an_extraction_resumes_after_its_last_complete_group(home, model, pixels, compute, monkeypatch):
    monkeypatch.setattr(extract, "ROW_GROUP", 8)
    arguments = {"compute": compute.model_copy(update={"batch_size": 4}), "iteration": 0, "split": "train"}
    with monkeypatch.context() as patch:
        patch.setattr(extract.extraction, "extract_features", dying(extract.extraction.extract_features, 3))
        with pytest.raises(KilledError):
            extract_features.fn(model, pixels, **arguments)
    assert len(list(home.glob("checkpoints/*/*"))) == 3
    assert not list(home.glob("artifacts/features/*"))
    with monkeypatch.context() as patch:
        patch.setattr(extract.extraction, "extract_features", dying(extract.extraction.extract_features, 2))
        resumed = extract_features.fn(model, pixels, **arguments)
    assert not list(home.glob("checkpoints/*"))
    assert resumed.sha256 == extract_features.fn(model, pixels, **arguments).sha256


@pytest.mark.fault("a checkpoint cannot be written", "a warning; the step continues")
def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_step(home, run_training):
    (home / "checkpoints").write_text("no folder")
    assert run_training().training.rows == 4


def test_a_checkpoint_is_written_while_the_next_epoch_is_trained(home, run_training, monkeypatch):
    """The state is a copy: what is written after the second epoch is the state of the first one."""
    pack, train, second_epoch = training._pack, training.train, threading.Event()

    def train_and_tell(*args, **kwargs):
        for epoch in train(*args, **kwargs):
            if epoch.epoch == 2:
                second_epoch.set()
            yield epoch

    with monkeypatch.context() as patch:
        patch.setattr(training, "_pack", lambda *args: second_epoch.wait(60) and pack(*args))
        patch.setattr(training, "train", train_and_tell)
        patch.setattr(training.TrainingState, "state_dict", dying(training.TrainingState.state_dict, 1))
        with pytest.raises(KilledError):
            run_training()
    assert second_epoch.is_set()
    trained_epochs = []
    with monkeypatch.context() as patch:
        patch.setattr(
            training, "train", lambda *args, **kwargs: (trained_epochs.append(epoch.epoch) or epoch for epoch in train(*args, **kwargs))
        )
        resumed = run_training()
    assert trained_epochs == [2, 3, 4]
    assert resumed.model.sha256 == run_training().model.sha256


def test_a_step_that_is_done_waits_for_its_last_write_before_it_deletes_the_checkpoint(home, run_training, monkeypatch):
    begun, may_end = threading.Event(), threading.Event()
    write_model, write = training.write_model, StepCheckpoint._write

    def slow_write(self, name, serialise):
        if len(begun_writes) == 2:
            begun.set()
            assert may_end.wait(60)
        begun_writes.append(name)
        write(self, name, serialise)

    def write_model_first(*args):
        assert begun.wait(60), "the last checkpoint is being written"
        threading.Timer(0.2, may_end.set).start()
        return write_model(*args)

    begun_writes = []
    monkeypatch.setattr(StepCheckpoint, "_write", slow_write)
    monkeypatch.setattr(training, "write_model", write_model_first)
    run_training()
    assert begun_writes == ["epoch"] * 3
    assert not list(home.glob("checkpoints/*"))


def test_parts_are_saved_by_elapsed_time(home, run_training, monkeypatch):
    monkeypatch.setenv(INTERVAL, "3600")
    monkeypatch.setattr(training, "_pack", dying(training._pack, 0))
    run_training()
    now = [100.0]
    monkeypatch.setattr("tasks.engine.checkpoints.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setenv(INTERVAL, "60")
    with ThreadPoolExecutor(1) as writer:
        checkpoint = StepCheckpoint(home / "checkpoints" / "step", writer)
        assert not checkpoint.is_due("epoch")
        now[0] = 160.0
        assert checkpoint.is_due("epoch")
        checkpoint.save("epoch", lambda: b"1")
        now[0] = 219.0
        assert not checkpoint.is_due("epoch")
        assert checkpoint.is_due("another part"), "it would be lost"
        now[0] = 220.0
        assert checkpoint.is_due("epoch")


def test_a_bug_in_a_checkpoint_is_an_error(home, run_training, monkeypatch):
    monkeypatch.setattr(training, "_pack", dying(training._pack, 1))
    with pytest.raises(KilledError):
        run_training()
    assert not list(home.glob("checkpoints/*/.partial-*"))
