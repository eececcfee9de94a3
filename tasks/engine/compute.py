"""Compute resources: device, number of threads and precision; resolved once per start of a run, recorded, and applied by each step."""

import contextlib
import ctypes
import functools
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from joblib import cpu_count

from pul_core.learning.precision import has_native_bfloat16
from pul_core.settings import Machine
from tasks.store.references import Compute, Reference

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LIBRARIES = ("numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "timm", "torch")  # those that compute


class Resources(Reference):
    """What the steps of a run compute on: those that train, those that extract features, and all others."""

    training: Compute
    inference: Compute
    host: Compute

    def record(self) -> dict[str, Any]:
        """Return the resources and the versions of the libraries as plain values, for config.json."""
        return {
            "device": self.training.device,
            "threads": self.host.threads,
            "training_dtype": self.training.dtype,
            "inference_dtype": self.inference.dtype,
            "versions": library_versions(),
        }


def resolve_compute(machine: Machine, recorded: Mapping[str, Any] | None = None) -> Resources:
    """Choose device, number of threads and precision.

    A GPU with native bfloat16 uses it throughout. A CPU uses it for inference only, and only with instructions for it: without them it was
    measured 26 times slower than float32.

    Args:
        machine: what was requested; what it leaves empty is taken from ``recorded``, else from this machine.
        recorded: the record of an earlier start of the same run, used as far as this machine allows.
    """
    recorded = recorded or {}
    available = "cuda" if torch.cuda.is_available() else "cpu"
    known = recorded.get("device")
    device = machine.device or (known if known and torch.device(known).type in ("cpu", available) else available)
    threads = machine.threads or min(recorded.get("threads", available_cores()), available_cores())
    fast = "bfloat16" if has_native_bfloat16(device) else "float32"
    on_gpu = torch.device(device).type == "cuda"
    return Resources(
        training=Compute(device=device, threads=threads, dtype=fast if on_gpu else "float32"),
        inference=Compute(device=device, threads=threads, dtype=fast),
        host=Compute(device="cpu", threads=threads, dtype="float32"),
    )


def available_cores() -> int:
    """Return the number of CPUs that this process may use: of its affinity, and of its cgroup's quota."""
    return int(cpu_count())


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {library: version(library) for library in LIBRARIES}


def prepare(compute: Compute) -> None:
    """Set the number of threads of this process, and make its allocator keep memory instead of returning it."""
    torch.set_num_threads(compute.threads)
    _keep_memory()


@functools.cache
def _keep_memory() -> None:
    """Make glibc keep freed blocks: it returns large ones at once, and training then spends a quarter of its time on page faults."""
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
