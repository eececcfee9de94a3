"""Precision by device: which devices have bfloat16, the number formats that follow, and settings of torch that are restored."""

import contextlib

import pytest
import torch

from pul_core.learning import precision
from pul_core.learning.precision import (
    autocast,
    fast_products,
    has_native_bfloat16,
    inference_dtype,
    training_dtype,
    use_deterministic_algorithms,
)


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


@pytest.mark.parametrize(
    ("native", "capability", "expected"),
    [(True, (9, 0), "bfloat16"), (False, (7, 5), "float16"), (False, (7, 0), "float16"), (False, (6, 1), "float32")],
)
def test_a_gpu_uses_bfloat16_or_else_float16_if_it_has_tensor_cores(monkeypatch, native, capability, expected):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: device == "cuda:1" and native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability if device == "cuda:1" else None)
    assert (training_dtype("cuda:1"), inference_dtype("cuda:1")) == (expected, expected)


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_trains_in_float32_and_extracts_in_bfloat16_if_that_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: native)
    assert (training_dtype("cpu"), inference_dtype("cpu")) == ("float32", expected)


@pytest.mark.parametrize(("dtype", "expected"), [("float32", None), ("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_autocast_enters_the_number_format_and_leaves_it(dtype, expected):
    with autocast("cpu:0", dtype):
        assert torch.is_autocast_enabled("cpu") is (expected is not None)
        assert expected in (None, torch.get_autocast_dtype("cpu"))
    assert not torch.is_autocast_enabled("cpu")


def gpu_settings():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark


@pytest.mark.parametrize("deterministic", [False, True])
def test_fast_products_are_restored_even_after_an_error(deterministic):
    before = gpu_settings()
    assert before != ("tf32", "tf32", True)
    use_deterministic_algorithms(deterministic)
    try:
        with contextlib.suppress(KeyError), fast_products():
            assert gpu_settings() == ("tf32", "tf32", not deterministic)
            raise KeyError
    finally:
        use_deterministic_algorithms(False)
    assert gpu_settings() == before


def test_deterministic_algorithms_are_optional_and_reversible():
    for enabled in (True, False):
        use_deterministic_algorithms(enabled)
        try:
            assert torch.are_deterministic_algorithms_enabled() is enabled
            assert torch.utils.deterministic.fill_uninitialized_memory is not enabled
        finally:
            use_deterministic_algorithms(False)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory
