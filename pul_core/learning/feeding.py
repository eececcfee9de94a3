"""Feeding a device with the pixels of batches: from its own memory if they fit there, otherwise read ahead by a thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pul_core.arrays import Images, Ints

RESIDENT_SHARE = 0.25  # of a GPU's total memory; not of its free memory, so that a run does not depend on what else uses the GPU
READ_AHEAD = 2  # batches
BLOCK = 1024  # images that are copied at once

Key = TypeVar("Key")
Value = TypeVar("Value")


class PixelSource(Protocol):
    """Images that can be indexed by row: an array (n, h, w, 3) uint8, or several files behind the same interface."""

    def __getitem__(self, rows: Ints, /) -> Images:
        """Return the images of these rows (b, h, w, 3)."""


Feed = Callable[[Sequence[Ints]], Iterator[Tensor]]


def pixel_feed(images: PixelSource, rows: Ints, *, device: str = "cpu") -> Feed:
    """Return a function that yields the pixels of batches on a device.

    A GPU keeps the images in its memory if they take at most `RESIDENT_SHARE` of it; their pixels are then copied only once, here. The
    pixels of a batch do not depend on where they are kept.

    Args:
        images: (n, h, w, 3) uint8, may be memory-mapped.
        rows: (m,) the images that the batches are taken from, as indices into ``images``.
        device: a torch device.

    Returns:
        A function of the batches, each an array of positions in ``rows``. It yields (b, 3, h, w) uint8, channels_last, for each batch.

    Example:
        >>> images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1).repeat(3, 3)
        >>> feed = pixel_feed(images, np.array([5, 3, 1]))
        >>> [pixels[:, 0, 0, 0].tolist() for pixels in feed([np.array([0, 2]), np.array([1])])]
        [[5, 1], [3]]
    """
    if torch.device(device).type == "cuda":
        num_bytes = len(rows) * images[rows[:1]].nbytes
        if num_bytes <= RESIDENT_SHARE * torch.cuda.get_device_properties(device).total_memory:
            return resident_feed(images, rows, device=device)
    return lambda batches: read_batches(images, [rows[batch] for batch in batches], device=device)


def resident_feed(images: PixelSource, rows: Ints, *, device: str = "cpu") -> Feed:
    """Copy images to a device, and return a function like that of `pixel_feed`, which gathers the batches there."""
    pixels = torch.empty((len(rows), *images[rows[:1]].shape[1:]), dtype=torch.uint8, device=device)
    blocks = np.split(rows, range(BLOCK, len(rows), BLOCK))
    for part, block in zip(torch.split(pixels, BLOCK), read_batches(images, blocks, device=device), strict=True):
        part.copy_(block.permute(0, 2, 3, 1))
    return lambda batches: (pixels[batch].permute(0, 3, 1, 2) for batch in split_on_device(batches, device=device))


def split_on_device(batches: Sequence[Ints], *, device: str = "cpu") -> tuple[Tensor, ...]:
    """Return integer arrays as tensors on a device. They are copied together, because each copy makes a GPU wait.

    Example:
        >>> split_on_device([np.array([4, 5]), np.array([6])])
        (tensor([4, 5]), tensor([6]))
    """
    return torch.split(torch.from_numpy(np.concatenate(batches)).to(device), [len(batch) for batch in batches])


def read_batches(images: PixelSource, batches: Sequence[Ints] | Sequence[slice], *, device: str = "cpu") -> Iterator[Tensor]:
    """Yield the pixels of batches on a device, read one after the other; for a GPU they are read and copied ahead by a thread.

    The CPU has no such thread: reading a batch takes less than a thousandth of a training step, and the thread would compete for its cores.

    Args:
        images: (n, h, w, 3) uint8, may be memory-mapped.
        batches: rows of ``images``; an array accepts slices as well.
        device: a torch device.

    Yields:
        (b, 3, h, w) uint8, channels_last.

    Example:
        >>> [pixels.shape for pixels in read_batches(np.zeros((5, 4, 2, 3), np.uint8), [slice(0, 3), slice(3, 5)])]
        [torch.Size([3, 3, 4, 2]), torch.Size([2, 3, 4, 2])]
    """
    if torch.device(device).type == "cuda":
        yield from _read_ahead_to_gpu(images, batches, device)
    else:
        for batch in batches:
            yield _read(images, batch).to(device).permute(0, 3, 1, 2)


def _read(images: PixelSource, batch: Ints | slice) -> Tensor:
    return torch.from_numpy(np.require(images[batch], requirements="W"))  # type: ignore[index] # copies what is read-only


def _read_ahead_to_gpu(images: PixelSource, batches: Iterable[Ints | slice], device: str) -> Iterator[Tensor]:
    """Read batches into pinned memory and copy them on a stream of their own, while the GPU computes."""
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def load(batch: Ints | slice) -> tuple[Tensor, torch.cuda.Event]:
        pinned = _read(images, batch).pin_memory()  # its memory is reused only after the copy
        with torch.cuda.stream(copies):
            return pinned.to(device, non_blocking=True), copies.record_event()

    for pixels, is_copied in read_ahead(load, batches):
        stream = torch.cuda.current_stream(device)
        stream.wait_event(is_copied)  # the GPU waits, not the host
        pixels.record_stream(stream)
        yield pixels.permute(0, 3, 1, 2)


def read_ahead(load: Callable[[Key], Value], keys: Iterable[Key]) -> Iterator[Value]:
    """Yield the value of each key in order, while a thread loads those of the next keys.

    Example:
        >>> list(read_ahead(str.upper, "abcd"))
        ['A', 'B', 'C', 'D']
    """
    with ThreadPoolExecutor(1) as reader:
        loading: deque[Future[Value]] = deque()
        for key in keys:
            loading.append(reader.submit(load, key))
            if len(loading) > READ_AHEAD:
                yield loading.popleft().result()
        while loading:
            yield loading.popleft().result()
