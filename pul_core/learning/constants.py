"""Constant tensors that are copied to a device once, not in every step: a copy from the host makes a GPU wait."""

import functools

import torch
from torch import Tensor


@functools.cache
def constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a vector of these values on a device. All callers share it, so it must not be changed.

    Example:
        >>> constant((0.5, 2), torch.device("cpu"))
        tensor([0.5000, 2.0000])
    """
    with torch.inference_mode(False):  # a tensor that is created in inference mode could not be used in training
        return torch.tensor(values, dtype=dtype, device=device)


@functools.cache
def positions(n: int, device: torch.device) -> Tensor:
    """Return 0, 1, ..., n - 1 on a device. All callers share it, so it must not be changed.

    Example:
        >>> positions(3, torch.device("cpu"))
        tensor([0, 1, 2])
    """
    with torch.inference_mode(False):
        return torch.arange(n, device=device)
