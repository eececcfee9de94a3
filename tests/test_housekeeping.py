"""What is cleared away and what stays; damage is found."""

import os
import time

import pytest

from tasks.operations.housekeeping import DAY, find_damage, find_rubbish, remove, sizes
from tasks.store.artifacts import write_bytes


def age(path, days):
    then = time.time() - days * DAY
    os.utime(path, (then, then))


@pytest.fixture
def store(home):
    """A run with three iterations, and files nobody refers to, all ten days old."""
    for iteration in range(3):
        folder = home / "runs" / "amber-fox" / f"iteration={iteration}"
        folder.mkdir(parents=True)
        for kind, suffix, link in (("models", "safetensors", "model"), ("clusters", "parquet", "clusters")):
            artifact = write_bytes(kind, suffix, 1, f"{kind} {iteration}".encode())
            (folder / f"{link}.{suffix}").symlink_to(home / "artifacts" / artifact.uri)
    write_bytes("features", "parquet", 1, b"of no run")
    (home / "artifacts" / "features" / ".partial-1").write_bytes(b"half")
    (home / "cache" / "pixels").mkdir(parents=True)
    (home / "cache" / "pixels" / "x.u8").write_bytes(b"pixels")
    (home / "checkpoints" / "pretrain-1").mkdir(parents=True)
    (home / "checkpoints" / "pretrain-1" / "epoch").write_bytes(b"epoch")
    for path in [*home.rglob("*")][::-1]:
        if not path.is_symlink():
            age(path, 10)
    return home


def names(rubbish, home):
    return sorted(str(item.path.relative_to(home)).rsplit("/", 1)[0] for item in rubbish)


def test_what_no_run_refers_to_goes_when_it_is_old(store):
    assert find_rubbish(older_than_days=11) == []
    rubbish = find_rubbish(older_than_days=7)
    assert names(rubbish, store) == ["artifacts/features", "artifacts/features", "cache/pixels", "checkpoints"]
    remove(rubbish)
    assert find_rubbish(older_than_days=0) == []
    assert len(list(store.glob("artifacts/models/*"))) == 3 and len(list(store.glob("artifacts/clusters/*"))) == 3
    assert list(find_damage()) == []


def test_a_step_that_was_at_work_yesterday_keeps_what_it_has(store):
    age(store / "checkpoints" / "pretrain-1" / "epoch", 1)
    assert "checkpoints" not in names(find_rubbish(older_than_days=7), store)


def test_thinning_keeps_first_and_last_model_and_every_table(store):
    rubbish = find_rubbish(older_than_days=7, keep_iterations=False)
    assert names(rubbish, store).count("artifacts/models") == 1
    remove(rubbish)
    assert sorted(path.parent.name for path in store.glob("runs/*/*/model.safetensors")) == ["iteration=0", "iteration=2"]
    assert len(list(store.glob("runs/*/*/clusters.parquet"))) == 3


def test_damage_is_found_where_it_is(store):
    (store / "runs" / "amber-fox" / "iteration=1" / "clusters.parquet").resolve().write_bytes(b"clusters 9")
    (store / "runs" / "amber-fox" / "iteration=2" / "model.safetensors").resolve().unlink()
    assert sorted(damage.what.split()[1] for damage in find_damage()) == ["damaged:", "missing"]


def test_sizes_count_files_once(store):
    assert sizes()["checkpoints"] == len(b"epoch")
    assert sizes()["runs"] == 0
