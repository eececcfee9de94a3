"""Which devices count as having bfloat16: the hardware checks of torch, of the device that is asked about."""

import contextlib

import pytest
import torch

from pul_core.learning.precision import has_native_bfloat16


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(False, False, False), (True, False, True), (False, True, True)])
def test_a_cpu_needs_avx512_or_amx_instructions(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert has_native_bfloat16("cpu") is expected


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", False), ("cuda:1", True)])
def test_a_gpu_is_checked_without_emulation_and_is_the_one_chosen(monkeypatch, device, expected):
    """Two GPUs, of which the second one has bfloat16; both can emulate it."""
    current = []

    @contextlib.contextmanager
    def select(chosen):
        current.append(torch.device(chosen).index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", select)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or current == [1])
    assert has_native_bfloat16(device) is expected
