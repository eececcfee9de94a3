"""Compute resources: device, number of threads and precision; chosen once per start of a run, recorded, and applied by each step."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from joblib import cpu_count

from pul_core.errors import UserError
from pul_core.learning.precision import inference_dtype, training_dtype, use_deterministic_algorithms
from pul_core.settings import Machine
from tasks.store.references import Compute, Reference

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LIBRARIES = ("numpy", "pillow", "pyarrow", "scikit-learn", "scipy", "timm", "torch")  # those that compute


class Resources(Reference):
    """The compute resources of a run: of steps that train, of feature extraction, and of clustering and scoring, which are exact."""

    training: Compute
    inference: Compute
    analysis: Compute

    def record(self) -> dict[str, Any]:
        """Return the resources and the versions of the libraries as plain values, for config.json."""
        return {
            "device": self.training.device,
            "threads": self.training.threads,
            "training_dtype": self.training.dtype,
            "inference_dtype": self.inference.dtype,
            "deterministic": self.training.deterministic,
            "versions": library_versions(),
        }


def resolve_compute(machine: Machine, recorded: Mapping[str, Any] | None = None) -> Resources:
    """Choose device, number of threads and precision.

    Args:
        machine: the requested resources; what is left empty is taken from ``recorded``, else from this machine.
        recorded: `Resources.record` of an earlier start of the same run, used as far as this machine allows.

    Raises:
        UserError: the machine does not have the requested device.
    """
    recorded = recorded or {}
    available = "cuda" if torch.cuda.is_available() else "cpu"
    last = recorded.get("device", available)
    usable = torch.device(last).type in ("cpu", available)
    device = (last if usable else available) if machine.device is None else resolve_device(machine.device)
    threads = machine.threads or min(recorded.get("threads", available_cores()), available_cores())
    common = {"threads": threads, "deterministic": machine.deterministic}
    return Resources(
        training=Compute(device=device, dtype=training_dtype(device), **common),
        inference=Compute(device=device, dtype=inference_dtype(device), batch_size=machine.extraction_batch_size, **common),
        analysis=Compute(device="cpu" if device.startswith("mps") else device, **common),  # Apple's GPUs have no float64
    )


def resolve_device(name: str) -> str:
    """Return the torch device that a name stands for, in the words of other tools as well: gpu, 0, CUDA.

    Raises:
        UserError: the machine does not have this device.

    Example:
        >>> resolve_device("CPU"), resolve_device("cpu:0")
        ('cpu', 'cpu')
    """
    devices = available_devices()
    text = name.strip().lower()
    if text.isdecimal():
        text = f"cuda:{text}"
    elif text.partition(":")[0] == "gpu":
        text = text.replace("gpu", "mps" if "mps" in devices else "cuda", 1)
    kind, _, number = text.partition(":")
    if text in devices or (kind in devices and number == "0") or (text == "cuda" and "cuda:0" in devices):
        return kind if kind in devices else text
    problem = nvidia_problem()
    raise UserError(
        f"there is no device {name!r}, this machine has: {', '.join(devices)}{f' ({problem})' if problem else ''}; "
        "choose one of them, or leave the device out"
    )


def available_devices() -> list[str]:
    """Return the torch devices of this machine, e.g. ``["cpu", "cuda:0", "cuda:1"]``."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return ["cpu", *(f"cuda:{number}" for number in cuda), *(["mps"] if torch.backends.mps.is_available() else [])]


def nvidia_problem() -> str | None:
    """Return why torch cannot use the NVIDIA GPU that this machine has; None if it can, or if there is no such GPU."""
    if torch.cuda.is_available() or not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    if torch.version.cuda is None:
        return f"its NVIDIA GPU is not used, because torch {torch.__version__} has no CUDA: install torch's CUDA build"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return "its NVIDIA GPU is hidden by CUDA_VISIBLE_DEVICES: unset it"
    return "torch cannot use its NVIDIA GPU: run nvidia-smi to check the driver"


def available_cores() -> int:
    """Return the number of CPUs that this process may use, given its affinity and its cgroup's quota."""
    return int(cpu_count())


@functools.cache
def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that compute."""
    return {library: version(library) for library in LIBRARIES}


def prepare(compute: Compute) -> None:
    """Set the threads of this process, the arithmetic of this thread and the algorithms of torch; make the allocator keep freed memory.

    glibc returns large blocks to the system at once; training then spends a quarter of its time on page faults.
    """
    torch.set_num_threads(compute.threads)
    torch.set_flush_denormal(True)  # again, because Prefect may have started this thread before `pul_core.learning` was imported
    if compute.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    use_deterministic_algorithms(compute.deterministic)
    with contextlib.suppress(OSError, AttributeError):  # another C library: only slower
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
