"""What to compute on: device, threads, precision. Decided once a run, recorded, and set inside each step."""

import os

import torch

from tasks.references import Compute


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


def set_threads(compute: Compute) -> None:
    """Use this many threads from here on; a step calls it first, so that its result does not depend on who ran before."""
    torch.set_num_threads(compute.threads)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
