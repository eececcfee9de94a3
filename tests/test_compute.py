"""Compute resources: what was requested, what an earlier start of the run recorded, and what the machine has."""

import os
from pathlib import Path

import pytest
import torch

from pul_core.errors import UserError
from pul_core.learning import precision
from pul_core.settings import Machine
from tasks.engine import compute
from tasks.engine.compute import available_cores, nvidia_problem, prepare, resolve_compute, resolve_device
from tasks.store.references import Compute


@pytest.mark.parametrize(
    ("requested", "recorded", "cores", "threads"),
    [
        (None, None, 4, 4),
        (None, 2, 4, 2),
        (None, 4, 2, 2),
        (3, 2, 4, 3),
        (1, None, 4, 1),
    ],
)
def test_threads_are_those_requested_else_those_recorded_as_far_as_there_are_cores(monkeypatch, requested, recorded, cores, threads):
    monkeypatch.setattr(compute, "available_cores", lambda: cores)
    record = {"device": "cpu", "threads": recorded} if recorded else None
    resources = resolve_compute(Machine(threads=requested), record)
    assert {resources.training.threads, resources.inference.threads, resources.analysis.threads} == {threads}


def test_a_recorded_device_that_this_machine_lacks_is_not_used(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: False)
    assert resolve_compute(Machine(), {"device": "cuda:0", "threads": 1}).training.device == "cpu"


def test_a_run_that_began_on_the_cpu_stays_there(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: device == "cuda")
    assert resolve_compute(Machine(), {"device": "cpu", "threads": 1}).training.device == "cpu"
    fresh = resolve_compute(Machine())
    assert (fresh.training.device, fresh.training.dtype) == ("cuda", "bfloat16")
    assert (fresh.analysis.device, fresh.analysis.dtype) == ("cuda", "float32")


def test_a_cpu_trains_in_float32_and_extracts_in_bfloat16_where_it_is_native(monkeypatch):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: True)
    resources = resolve_compute(Machine(device="cpu"))
    assert (resources.training.dtype, resources.inference.dtype, resources.analysis.dtype) == ("float32", "bfloat16", "float32")


def test_the_number_of_cores_is_what_the_process_may_use(monkeypatch):
    """joblib reads the affinity and the cgroup's quota; here its own limit stands for the quota."""
    assert available_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert available_cores() == 1


def test_the_record_has_what_rounding_depends_on():
    record = resolve_compute(Machine(device="cpu", threads=1)).record()
    assert (record["device"], record["threads"]) == ("cpu", 1)
    assert {"training_dtype", "inference_dtype"} <= set(record) and {"torch", "numpy", "scikit-learn"} <= set(record["versions"])


@pytest.fixture
def machine(monkeypatch):
    """A function that makes this machine one with a number of CUDA GPUs, and with or without Apple's."""

    def pretend(gpus, mps=False):
        monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(compute.torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(compute.torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("name", "gpus", "mps", "device"),
    [
        ("cpu", 0, False, "cpu"),
        ("CPU", 0, False, "cpu"),
        (" cpu ", 2, False, "cpu"),
        ("cpu:0", 0, False, "cpu"),
        ("cuda", 1, False, "cuda"),
        ("CUDA", 1, False, "cuda"),
        ("cuda:0", 1, False, "cuda:0"),
        ("Cuda:1", 2, False, "cuda:1"),
        ("gpu", 1, False, "cuda"),
        ("GPU:1", 2, False, "cuda:1"),
        ("0", 1, False, "cuda:0"),
        ("1", 2, False, "cuda:1"),
        ("mps", 0, True, "mps"),
        ("mps:0", 0, True, "mps"),
        ("gpu", 0, True, "mps"),
    ],
)
def test_a_device_that_exists_is_understood_in_the_words_of_other_tools(machine, name, gpus, mps, device):
    machine(gpus, mps)
    assert resolve_device(name) == device


WRONG_DEVICES = [
    *("cuda", "cuda:0", "gpu", "gpu:0", "0", "mps", "xpu", "tpu", "hip", "meta", "cuda:x", "cuda:", "cuda:-1", "cuda:0,1", "0,1", "-1", ""),
    *(
        " ",
        "cpu:1",
        "cpu:x",
        "none",
        "auto",
        "nvidia",
        "cuda:99999999999999999999",
        "²",
        "cuda:٣",
        "cud",
        "/dev/nvidia0",
        "cuda:0:0",
        "a\nb",
    ),
]


@pytest.mark.parametrize("name", WRONG_DEVICES)
def test_a_device_that_does_not_exist_is_rejected_with_those_that_do(machine, name):
    machine(0)
    with pytest.raises(UserError) as error:
        resolve_compute(Machine(device=name))
    assert f"there is no device {name!r}, this machine has: cpu" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cuda:2", "2", "gpu:2", "mps", "xpu", "cuda:x", "cuda:00", ""])
def test_the_devices_of_a_machine_with_two_gpus_are_listed(machine, name):
    machine(2)
    with pytest.raises(UserError, match="this machine has: cpu, cuda:0, cuda:1; choose one of them, or leave the device out"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("built_for", "visible", "words"),
    [
        (None, None, "has no CUDA: install torch's CUDA build"),
        ("13.0", "", "is hidden by CUDA_VISIBLE_DEVICES"),
        ("13.0", "-1", "is hidden by CUDA_VISIBLE_DEVICES"),
        ("13.0", None, "run nvidia-smi to check the driver"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_explained(machine, monkeypatch, built_for, visible, words):
    machine(0)
    assert nvidia_problem() is None or Path("/dev/nvidia0").exists()
    monkeypatch.setattr(compute.Path, "glob", lambda *_: iter(["/dev/nvidia0"]))
    monkeypatch.setattr(compute.torch.version, "cuda", built_for)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert words in str(nvidia_problem())
    with pytest.raises(UserError, match="NVIDIA GPU"):
        resolve_device("cuda")


def test_only_training_and_extraction_use_apples_gpu(machine):
    machine(0, mps=True)
    resources = resolve_compute(Machine(device="mps"))
    assert [part.device for part in (resources.training, resources.inference, resources.analysis)] == ["mps", "mps", "cpu"]


def test_determinism_is_part_of_a_key_on_a_gpu_only():
    def token(device, deterministic):
        return Compute(device=device, threads=1, deterministic=deterministic).cache_token()

    assert token("cpu", True) == token("cpu", False)
    assert token("cuda:0", True) != token("cuda:1", False) == token("cuda:0", False)


def test_a_step_sets_what_it_computes_with():
    try:
        prepare(Compute(device="cpu", threads=1, deterministic=True))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.tensor([1e-40]).mul(1.0).view(torch.int32).any(), "denormal numbers are zero"
    finally:
        prepare(Compute(device="cpu", threads=1))
    assert not torch.are_deterministic_algorithms_enabled()
