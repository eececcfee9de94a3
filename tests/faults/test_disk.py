"""Full and read-only disks, and damaged files: the error says what to do, and finished work is kept."""

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tasks.engine.checkpoints import INTERVAL
from tasks.extract import extract_features
from tasks.store.artifacts import DamagedArtifactError, locate, read_table, write_bytes, write_table
from tasks.store.readers import open_pixels
from tasks.store.references import Reliable
from tasks.training import fine_tune


@pytest.fixture
def mount(tmp_path):
    """A function that mounts a small file system at a folder, or remounts it with other options: ``size=20k``, ``ro``."""
    mounted = []

    def mount(folder, options):
        folder.mkdir(parents=True, exist_ok=True)
        again = ["-o", f"remount,{options}"] if folder in mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *again, folder], capture_output=True, text=True, check=False)
        if done.returncode and folder not in mounted:
            pytest.skip(f"mounting a file system is not permitted: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(folder)

    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    yield mount
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def extract(model, pixels, compute):
    return lambda: extract_features.fn(model, pixels, compute=compute, iteration=0, split="train")


@pytest.fixture
def train(model, pixels, plan, compute):
    settings = replace(plan.fine_tuning, epochs=2)
    rows = open_pixels(pixels)[0][:8]
    table = pa.table({"row": rows, "pseudo_label": np.arange(8) // 4, "similarity": np.ones(8)})
    reliable = Reliable(reliable=write_table("reliable", table), num_classes=2)
    return lambda: fine_tune.fn(model, pixels, reliable, settings=settings, seed=3, compute=compute, iteration=1).model


@pytest.mark.parametrize(("kind", "step"), [("features", "extract"), ("models", "train")])
@pytest.mark.fault(
    "disk full while features or weights are written",
    "`no space left below ...: free some (pul gc), then Retry or pul resume`; then it continues",
)
def test_disk_full(home, mount, request, kind, step, monkeypatch):
    monkeypatch.setenv(INTERVAL, "0")
    work = request.getfixturevalue(step)
    expected = work()
    folder = home / "artifacts" / kind
    copy = shutil.move(folder, home / "copy")
    shutil.copytree(copy, folder)
    mount(folder, "size=8k")  # hides the files and is too small for features and weights
    if kind == "models":  # the start model was written before the disk filled up
        mount(folder, "size=200m")
        for file in Path(copy).iterdir():
            if not expected.uri.endswith(file.name):
                shutil.copy(file, folder)
        used = sum(file.stat().st_size for file in folder.iterdir())
        mount(folder, f"size={used // 1024 + 40}k")
    with pytest.raises(OSError, match=r"no space left below .*pul gc.*pul resume") as raised:
        work()
    assert raised.value.errno == errno.ENOSPC
    assert not list(folder.glob(".partial-*")), "a partial file would keep the disk full"
    assert list(home.glob("checkpoints/*/*")), "finished parts are kept"
    mount(folder, "size=200m")
    assert work().sha256 == expected.sha256


@pytest.mark.fault(
    "the artifact root is read-only", "`... is read-only: make it writable, then Retry or pul resume`; existing artifacts can still be read"
)
def test_a_read_only_artifact_root(home, mount):
    mount(home / "artifacts", "size=1m")
    table = write_table("clusters", pa.table({"row": [1, 2]}))
    mount(home / "artifacts", "ro")
    assert read_table(table).num_rows == 2
    with pytest.raises(OSError, match=r"artifacts is read-only: .*pul resume"):
        write_bytes("models", "safetensors", 1, b"weights")


def damage(path, how, other):
    """Damage a file as a faulty disk or a user might."""
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif how == "delete":
        path.unlink()
    else:
        swapped = other.read_bytes()
        other.write_bytes(data)
        path.write_bytes(swapped)


DAMAGES = ["flip", "truncate", "delete", "swap"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.fault(
    "a bit is flipped in a file that a step reads, or it is truncated, deleted or swapped with another",
    "`artifact ... is damaged: ... computes it again`",
)
def test_damage_under_a_step(home, how):
    tables = [write_table("features", pa.table({"row": [number, 2]})) for number in range(2)]
    read_table(tables[0])
    damage(Path(locate(tables[0])), how, Path(locate(tables[1])))
    with pytest.raises(DamagedArtifactError, match=r"(damaged|missing).*(Retry or pul resume computes it again)"):
        read_table(tables[0])


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.fault(
    "a bit is flipped in artifacts of every kind, pixels, Prefect's results and scans, or they are truncated, deleted or swapped",
    "the log names each; the same bytes again",
)
def test_damage_of_every_kind(driver, arguments, undisturbed, run_folder, tmp_path, how, tried):
    """With one damaged file of every kind, the last step of each kind runs again and all other steps come from the cache."""
    shutil.copytree(undisturbed.home, tmp_path / ".pul", symlinks=True)
    home = tmp_path / ".pul"
    folders = [*home.glob("artifacts/*"), home / "cache" / "pixels", home / "cache" / "scans", home / "prefect" / "storage"]
    for folder in folders:
        files = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for file in files[-2:] if folder.name == "models" else files[-1:]:  # the newest model is a copy with licences, which no step reads
            damage(file, how, files[0])
    tried(len(folders))
    assert {folder.name for folder in folders} >= {"images", "labels", "decoded", "features", "clusters", "centres", "reliable", "models"}
    command = driver.start(tmp_path, *arguments)
    assert command.wait() == 0, command.log
    for kind in ("features", "clusters", "models"):
        assert f"artifact {kind}/" in command.log, "the damage is logged"
    assert run_folder(tmp_path).artifacts == undisturbed.artifacts
    assert run_folder(tmp_path).all_intact()


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "disk full while MLflow's database is written", "one line that names the database and what to do; pul resume continues the run"
)
def test_the_database_disk_is_full(driver, arguments, undisturbed, run_folder, mount, tmp_path):
    small = tmp_path / "small"
    mount(small, "size=2m")
    shutil.copy(driver.folder / "mlflow.db", small)
    filler = small / "filler"
    filler.write_bytes(b"x" * (os.statvfs(small).f_bavail * os.statvfs(small).f_bsize - 60_000))
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{small}/mlflow.db"}
    command = driver.start(tmp_path, *arguments, **store)
    assert command.wait() == 1, command.log
    last = command.log.strip().splitlines()[-1]
    assert last.startswith("pul: ") and "MLflow" in last and "full" in last and "pul resume" in last, command.log
    filler.unlink()
    command = driver.start(tmp_path, *arguments, **store)
    assert command.wait() == 0, command.log
    assert run_folder(tmp_path).artifacts == undisturbed.artifacts
