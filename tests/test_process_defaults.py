"""Defaults of the process: denormal numbers are zero in all threads, and little time is spent on the search for cyclic garbage."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNT_DENORMALS = """
import sys
from pul_core.learning.training import train
import torch

for threads in map(int, sys.argv[1:]):
    torch.set_num_threads(threads)
    denormal = torch.full((64, 3, 3, 3), 1e-41)
    images = torch.full((32, 3, 64, 32), 1e-39).contiguous(memory_format=torch.channels_last)
    weights = torch.nn.Parameter(denormal)
    products = torch.nn.functional.conv2d(images + 1, weights, padding=1)
    (products * 1e-40).sum().backward()
    moments = torch.full((1 << 20,), 1e-38)
    results = [products.detach(), weights.grad, moments * 1e-3, moments.mul_(0.5) * 0.1]
    bits = torch.cat([tensor.flatten().view(torch.int32) for tensor in results])
    print(torch.get_num_threads(), int((((bits & 0x7F800000) == 0) & ((bits & 0x7FFFFF) != 0)).sum()))
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | environment).stdout.strip()


def test_no_thread_computes_denormal_numbers():
    """Threads start when they are first needed, so a larger number starts new ones."""
    assert run(COUNT_DENORMALS, "1", "2", "4").splitlines() == ["1 0", "2 0", "4 0"]


def test_the_count_of_denormals_can_fail():
    program = COUNT_DENORMALS.replace("import torch\n", "import torch\ntorch.set_flush_denormal(False)\n")
    assert int(run(program, "2").split()[1]) > 0


AT_FIRST_SLOW_IMPORT = """
import atexit, gc, importlib, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("prefect", "typer"):
            print(gc.get_threshold())
            sys.exit()

sys.meta_path.insert(0, Watch())
atexit.register(lambda: print(gc.get_freeze_count() > 1000))
importlib.import_module(sys.argv[1])
"""


def test_little_garbage_is_collected_from_the_first_slow_import_to_the_end():
    for module in ("flows.pul", "flows.sweep", "deployments.cli"):
        assert run(AT_FIRST_SLOW_IMPORT, module).splitlines() == ["(10000, 20, 20)", "True"], module
    assert run(AT_FIRST_SLOW_IMPORT, "prefect").splitlines() == ["(700, 10, 10)", "False"], "Python's defaults"


def test_the_core_and_the_tasks_leave_garbage_to_the_program_that_imports_them():
    """Their code is part of the cache keys, too."""
    files = [file for package in ("pul_core", "tasks") for file in (ROOT / package).rglob("*.py")]
    assert files and [file for file in files if re.search(r"gc\.(set_threshold|freeze|disable)", file.read_text(encoding="utf-8"))] == []
