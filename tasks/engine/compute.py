"""What to compute on: device, threads, precision. Decided once a run, recorded, and set inside each step."""

import contextlib
import ctypes
import functools
import os

import torch

from tasks.store.references import Compute

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def resolve_compute(device: str | None = None, threads: int | None = None) -> Compute:
    """Choose the device, the number of threads and where bfloat16 pays.

    A GPU with bfloat16 uses it throughout. A CPU uses it for inference only, and only with instructions for it: without them it was
    measured 26 times slower than float32.

    Args:
        device: a torch device; None takes the first GPU if there is one.
        threads: of the CPU; None takes one a core this process may use.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(chosen).type == "cuda":
        bf16 = torch.cuda.is_bf16_supported()
        return Compute(device=chosen, threads=threads or _cores(), bf16_inference=bf16, bf16_training=bf16)
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return Compute(device=chosen, threads=threads or _cores(), bf16_inference=fast, bf16_training=False)


def prepare(compute: Compute) -> None:
    """Set this process up for a step that computes: so many threads, whoever ran before, and memory that is kept instead of given back."""
    torch.set_num_threads(compute.threads)
    _keep_memory()


@functools.cache
def _keep_memory() -> None:
    """Let glibc keep freed blocks: it gives large ones back at once, and training then spends a quarter of its time on page faults."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
