"""Compute resources: what was requested, what an earlier start of the run recorded, and what the machine has."""

import os

import pytest

from pul_core.settings import Machine
from tasks.engine import compute
from tasks.engine.compute import available_cores, resolve_compute


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
    assert {resources.training.threads, resources.inference.threads, resources.host.threads} == {threads}


def test_a_recorded_device_that_this_machine_lacks_is_not_used(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: False)
    assert resolve_compute(Machine(), {"device": "cuda:0", "threads": 1}).training.device == "cpu"


def test_a_run_that_began_on_the_cpu_stays_there(monkeypatch):
    monkeypatch.setattr(compute.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(compute, "has_native_bfloat16", lambda device: device == "cuda")
    assert resolve_compute(Machine(), {"device": "cpu", "threads": 1}).training.device == "cpu"
    fresh = resolve_compute(Machine())
    assert (fresh.training.device, fresh.training.dtype, fresh.host.device) == ("cuda", "bfloat16", "cpu")


def test_a_cpu_trains_in_float32_and_extracts_in_bfloat16_where_it_is_native(monkeypatch):
    monkeypatch.setattr(compute, "has_native_bfloat16", lambda device: True)
    resources = resolve_compute(Machine(device="cpu"))
    assert (resources.training.dtype, resources.inference.dtype, resources.host.dtype) == ("float32", "bfloat16", "float32")


def test_the_number_of_cores_is_what_the_process_may_use(monkeypatch):
    """joblib reads the affinity and the cgroup's quota; here its own limit stands for the quota."""
    assert available_cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert available_cores() == 1


def test_the_record_has_what_rounding_depends_on():
    record = resolve_compute(Machine(device="cpu", threads=1)).record()
    assert (record["device"], record["threads"]) == ("cpu", 1)
    assert {"training_dtype", "inference_dtype"} <= set(record) and {"torch", "numpy", "scikit-learn"} <= set(record["versions"])
