"""Garbage collection removes what no run needs and nothing else; damaged files are found."""

import os
import time

import pytest

from tasks.operations.housekeeping import DAY, find_damage, find_garbage, remove, sizes
from tasks.store.artifacts import write_bytes


def set_age(path, days):
    timestamp = time.time() - days * DAY
    os.utime(path, (timestamp, timestamp))


@pytest.fixture
def store(home):
    """A run with three iterations, and files that no run refers to, all ten days old."""
    for iteration in range(3):
        folder = home / "runs" / "amber-fox" / f"iteration={iteration}"
        folder.mkdir(parents=True)
        for kind, suffix, link in (("models", "safetensors", "model"), ("clusters", "parquet", "clusters")):
            artifact = write_bytes(kind, suffix, 1, f"{kind} {iteration}".encode())
            (folder / f"{link}.{suffix}").symlink_to(home / "artifacts" / artifact.uri)
    write_bytes("features", "parquet", 1, b"unreferenced")
    (home / "artifacts" / "features" / ".partial-1").write_bytes(b"half")
    (home / "cache" / "pixels").mkdir(parents=True)
    (home / "cache" / "pixels" / "x.u8").write_bytes(b"pixels")
    (home / "checkpoints" / "pretrain-1").mkdir(parents=True)
    (home / "checkpoints" / "pretrain-1" / "epoch").write_bytes(b"epoch")
    for path in [*home.rglob("*")][::-1]:
        if not path.is_symlink():
            set_age(path, 10)
    return home


def folders(garbage, home):
    return sorted(str(item.path.relative_to(home)).rsplit("/", 1)[0] for item in garbage)


def test_unreferenced_files_are_garbage_once_they_are_old_enough(store):
    assert find_garbage(older_than_days=11) == []
    garbage = find_garbage(older_than_days=7)
    assert folders(garbage, store) == ["artifacts/features", "artifacts/features", "cache/pixels", "checkpoints"]
    remove(garbage)
    assert find_garbage(older_than_days=0) == []
    assert len(list(store.glob("artifacts/models/*"))) == 3 and len(list(store.glob("artifacts/clusters/*"))) == 3
    assert list(find_damage()) == []


def test_a_recent_checkpoint_is_not_garbage(store):
    set_age(store / "checkpoints" / "pretrain-1" / "epoch", 1)
    assert "checkpoints" not in folders(find_garbage(older_than_days=7), store)


def test_thinning_keeps_the_first_and_the_last_model_and_all_tables(store):
    garbage = find_garbage(older_than_days=7, keep_iterations=False)
    assert folders(garbage, store).count("artifacts/models") == 1
    remove(garbage)
    assert sorted(path.parent.name for path in store.glob("runs/*/*/model.safetensors")) == ["iteration=0", "iteration=2"]
    assert len(list(store.glob("runs/*/*/clusters.parquet"))) == 3


def test_damaged_and_missing_files_are_found(store):
    (store / "runs" / "amber-fox" / "iteration=1" / "clusters.parquet").resolve().write_bytes(b"clusters 9")
    (store / "runs" / "amber-fox" / "iteration=2" / "model.safetensors").resolve().unlink()
    assert sorted(damage.problem.split()[1] for damage in find_damage()) == ["damaged:", "missing"]


def test_sizes_do_not_count_links(store):
    assert sizes()["checkpoints"] == len(b"epoch")
    assert sizes()["runs"] == 0
