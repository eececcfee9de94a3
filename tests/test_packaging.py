"""The wheel contains every sub-package and data file, and works without the checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGES = ("pul_core", "tasks", "flows", "deployments")

FIRST_STEP = """
import json, pkgutil, sys
from importlib import import_module
from yaml import safe_load
from deployments.environment import configure
configure()
from deployments.servers import PREFECT_FILE
from tasks.index import index
for package in sys.argv[1:]:
    for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
        import_module(module.name)
files = [module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] in sys.argv[1:]]
parameters = safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"][0]["parameters"]
print(json.dumps({"files": files, "splits": index.fn(parameters["source"], "source").splits}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes build/ beside pyproject.toml, and packages what an earlier build left there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist", folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


def pip(*arguments):
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", "--no-index"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout + completed.stderr


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


@pytest.fixture
def python(installed, tmp_path):
    """Run Python outside the checkout, with nothing but the installed wheel on PYTHONPATH."""

    def run(*arguments):
        clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(installed)}
        command = [sys.executable, *arguments]
        completed = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    return run


def test_the_wheel_contains_every_module_and_data_file(wheel):
    patterns = ("*.py", "py.typed", "*.yaml", "*.html", "*.css", "*.js")
    sources = {file.relative_to(ROOT).as_posix() for name in PACKAGES for pattern in patterns for file in (ROOT / name).rglob(pattern)}
    assert {"deployments/prefect.yaml", "tasks/py.typed", "tasks/store/artifacts.py"} <= sources
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == sources


def test_the_command_works_from_the_wheel(python):
    assert python("-m", "deployments.cli", "--help").startswith("Usage: pul [OPTIONS] COMMAND")


def test_the_first_step_of_the_demo_works_from_the_wheel(python, installed, tmp_path):
    step = json.loads(python("-c", FIRST_STEP, *PACKAGES).splitlines()[-1])
    assert len(step["files"]) > 70 and all(Path(file).is_relative_to(installed) for file in step["files"])
    assert step["splits"]["train"] > 0
    assert list((tmp_path / ".pul" / "artifacts" / "images").glob("*.parquet"))
