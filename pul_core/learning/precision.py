"""Precision by device: the number format of training and of inference, TF32, and deterministic algorithms."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pul_core.settings import Dtype

TENSOR_CORES = (7, 0)  # the first compute capability (Volta) on which float16 is faster than float32


def has_native_bfloat16(device: str) -> bool:
    """Return whether a device has instructions for bfloat16. Without them it is emulated, on a CPU 26 times slower than float32.

    Args:
        device: a torch device, e.g. ``cpu`` or ``cuda:1``.

    Example:
        >>> has_native_bfloat16("cpu") in (True, False)
        True
    """
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_dtype(device: str) -> Dtype:
    """Return the number format of the forward and backward passes of training; weights are always float32.

    A GPU trains in bfloat16 if that is native, otherwise in float16 with loss scaling (V100, T4); one older than these, and every other
    device, in float32.

    Args:
        device: a torch device.

    Example:
        >>> training_dtype("cpu")
        'float32'
    """
    if torch.device(device).type != "cuda":
        return "float32"
    if has_native_bfloat16(device):
        return "bfloat16"
    return "float16" if torch.cuda.get_device_capability(device) >= TENSOR_CORES else "float32"


def inference_dtype(device: str) -> Dtype:
    """Return the number format of feature extraction: that of training on a GPU, bfloat16 on a CPU that has instructions for it.

    Args:
        device: a torch device.

    Example:
        >>> inference_dtype("cpu") in ("float32", "bfloat16")
        True
    """
    if torch.device(device).type == "cuda":
        return training_dtype(device)
    return "bfloat16" if has_native_bfloat16(device) else "float32"


def autocast(device: str, dtype: Dtype) -> contextlib.AbstractContextManager[object]:
    """Return a context in which forward passes on a device use a number format.

    Example:
        >>> with autocast("cpu", "bfloat16"):
        ...     (torch.ones(1, 2) @ torch.ones(2, 1)).dtype
        torch.bfloat16
    """
    return contextlib.nullcontext() if dtype == "float32" else torch.autocast(torch.device(device).type, getattr(torch, dtype))


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Inside the block, let GPUs compute float32 products and convolutions in TF32, and cuDNN choose its algorithms by timing them.

    With deterministic algorithms cuDNN does not choose by time, because its choice may differ from run to run. CPUs are not affected.

    Example:
        >>> with fast_products():
        ...     torch.backends.cuda.matmul.fp32_precision
        'tf32'
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    convolutions = cudnn.conv  # type: ignore[attr-defined]
    before = matmul.fp32_precision, convolutions.fp32_precision, cudnn.benchmark
    matmul.fp32_precision, convolutions.fp32_precision, cudnn.benchmark = "tf32", "tf32", not torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        matmul.fp32_precision, convolutions.fp32_precision, cudnn.benchmark = before


def use_deterministic_algorithms(enabled: bool) -> None:
    """Let torch use only algorithms that give the same bytes on the same GPU, run after run, or all algorithms again.

    CPUs give the same bytes in any case.

    Args:
        enabled: if True, the environment variable ``CUBLAS_WORKSPACE_CONFIG`` has to be ``:4096:8`` before CUDA starts; without it,
            products raise an error.

    Example:
        >>> use_deterministic_algorithms(True)
        >>> torch.are_deterministic_algorithms_enabled()
        True
        >>> use_deterministic_algorithms(False)
    """
    torch.use_deterministic_algorithms(enabled)
    memory: Any = torch.utils.deterministic
    memory.fill_uninitialized_memory = not enabled  # with NaN: a debugging aid that costs time
