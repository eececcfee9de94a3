"""The ways to feed a device give the same pixels: read directly, read ahead by a thread, and gathered from the device's memory."""

import contextlib
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pul_core.learning import feeding
from pul_core.learning.feeding import pixel_feed, read_ahead, read_batches, resident_feed, split_on_device

ROWS = np.array([9, 1, 5, 0, 8, 5, 4, 11])
BATCHES = [np.array([7, 0, 3]), np.array([1, 1]), np.array([2, 4, 5, 6])]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 6, 4, 3), dtype=np.uint8)


@pytest.fixture
def fake_gpu(monkeypatch):
    """Let streams and pinned memory do nothing, so that the code for GPUs runs on the CPU; return the events that were waited for."""
    waited = []
    events = iter(range(1000))
    stream = SimpleNamespace(record_event=lambda: next(events), wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    return waited


def expected(images):
    return [torch.from_numpy(images[ROWS[batch]]).permute(0, 3, 1, 2) for batch in BATCHES]


def assert_pixels(batches, images):
    batches = list(batches)
    assert len(batches) == len(BATCHES)
    for pixels, oracle in zip(batches, expected(images), strict=True):
        assert torch.equal(pixels, oracle)
        assert pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("block", [3, 8, 1024])
def test_pixels_kept_on_the_device_equal_those_that_are_read(images, monkeypatch, block):
    monkeypatch.setattr(feeding, "BLOCK", block)
    assert_pixels(pixel_feed(images, ROWS)(BATCHES), images)
    feed = resident_feed(images, ROWS)
    assert_pixels(feed(BATCHES), images)
    assert_pixels(feed(BATCHES), images)


def test_pixels_that_a_thread_reads_equal_those_that_are_read_directly(images, fake_gpu):
    batches = feeding._read_ahead_to_gpu(images, [ROWS[batch] for batch in BATCHES], "cpu")
    for number, (pixels, oracle) in enumerate(zip(batches, expected(images), strict=True)):
        assert torch.equal(pixels, oracle)
        assert fake_gpu == list(range(number + 1)), "the GPU waits for each copy before the batch is used"


@pytest.mark.parametrize(("memory", "way"), [(4 * 8 * 72, "resident"), (4 * 8 * 72 - 1, "read")])
def test_a_gpu_keeps_images_that_take_a_quarter_of_its_memory(images, monkeypatch, memory, way):
    """Eight images of 72 bytes."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=memory))
    monkeypatch.setattr(feeding, "resident_feed", lambda *_, **__: "resident")
    monkeypatch.setattr(feeding, "read_batches", lambda *_, **__: "read")
    feed = pixel_feed(images, ROWS, device="cuda:1")
    assert (feed if way == "resident" else feed(BATCHES)) == way


def test_read_only_files_are_copied_and_slices_are_batches(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    first, second = read_batches(mapped, [slice(0, 8), slice(8, 16)])
    first[:] = 0
    np.testing.assert_array_equal(mapped, images)
    assert torch.equal(second, torch.from_numpy(images[8:]).permute(0, 3, 1, 2))


def test_a_thread_reads_two_batches_ahead_and_no_more():
    loaded, loading = [], threading.Event()

    def load(key):
        loaded.append((key, threading.current_thread()))
        if key == 2:
            loading.set()
        return key

    values = read_ahead(load, range(10))
    assert loaded == []
    assert next(values) == 0
    assert loading.wait(10)
    assert [key for key, _ in loaded] == [0, 1, 2]
    assert threading.main_thread() not in {thread for _, thread in loaded}
    assert list(values) == list(range(1, 10))
    assert [key for key, _ in loaded] == list(range(10))


def test_an_error_of_the_thread_is_raised_at_its_batch():
    values = read_ahead(lambda key: 6 / key, [3, 2, 0, 1])
    assert [next(values), next(values)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_a_feed_that_is_left_early_ends_its_thread():
    before = threading.active_count()
    values = read_ahead(lambda key: key, range(10))
    next(values)
    values.close()
    assert threading.active_count() == before


def test_integers_are_split_as_they_were():
    parts = split_on_device([np.arange(3), np.arange(5, 6)])
    assert [part.tolist() for part in parts] == [[0, 1, 2], [5]]
