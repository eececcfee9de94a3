"""On a GPU: every device-aware function equals the CPU, deterministic trainings repeat their bytes, and a model learns."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from equality import CHECKS  # noqa: E402

from pul_core.learning.backbone import build_backbone  # noqa: E402
from pul_core.learning.precision import training_dtype  # noqa: E402
from pul_core.learning.training import begin_training, train  # noqa: E402
from pul_core.settings import Training  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="requires a CUDA GPU, and torch finds none"),
]


@pytest.mark.parametrize("name", CHECKS)
def test_it_equals_the_cpu(name):
    check = CHECKS[name]
    assert check.difference(check.run("cpu", 0), check.run("cuda", 0)) <= check.tolerance


TWICE = """
import sys
sys.path.insert(0, sys.argv[1])
from equality import train_twice
first, second = train_twice("cuda", deterministic=True)
print(len(first) > 1_000_000, first == second)
"""


def test_two_deterministic_trainings_have_the_same_bytes():
    """In a process of its own, because cuBLAS reads its variable when CUDA starts."""
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run([sys.executable, "-c", TWICE, BENCHMARKS], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_training_learns_two_colours():
    rng = np.random.default_rng(0)
    classes = np.arange(64) % 2
    images = (rng.integers(0, 128, (64, 64, 32, 3)) + 127 * classes[:, None, None, None]).astype(np.uint8)
    settings = Training(epochs=6, batch_size=16)
    options = {"device": "cuda", "dtype": training_dtype("cuda")}
    training = begin_training(build_backbone("resnet10t"), settings, num_classes=2, seed=0, **options)
    history = list(train(training, images, np.arange(64), classes, settings, seed=0))
    assert {parameter.device.type for parameter in training.backbone.parameters()} == {"cuda"}
    assert history[-1].accuracy > 0.95 and history[-1].loss < history[0].loss
