"""Garbage collection removes what no run needs and nothing else; damaged files are found."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid

import fsspec
import pytest

from pul_core.errors import DataError
from tasks.operations import purge
from tasks.operations.housekeeping import DAY, find_damage, find_garbage, remove, sizes
from tasks.store import users
from tasks.store.artifacts import verify, write_bytes
from tasks.store.records import write_record
from tasks.store.users import housekeeping


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


# --- artifacts outside the home


@pytest.fixture(params=["folder", "folder/", "file://", "memory://"])
def elsewhere(home, tmp_path, monkeypatch, request):
    """A store that is not below the home, with a recorded run of three iterations and garbage; and how to look into it."""
    where = {"folder": f"{tmp_path}/store", "folder/": f"{tmp_path}/store/", "file://": f"file://{tmp_path}/store"}
    location = where.get(request.param, f"memory://store-{uuid.uuid4().hex}")
    monkeypatch.setenv("PUL_ARTIFACTS", location)
    fs, root = fsspec.core.url_to_fs(location.rstrip("/"))
    for iteration in range(3):
        kinds = (("models", "safetensors"), ("clusters", "parquet"))
        write_record(f"amber-fox/iteration={iteration}", [write_bytes(kind, end, 1, f"{kind} {iteration}".encode()) for kind, end in kinds])
    write_record("amber-fox", [write_bytes("images", "parquet", 1, b"images")])
    write_bytes("features", "parquet", 1, b"unreferenced")
    fs.pipe_file(f"{root}/features/.partial-{uuid.uuid4().hex}", b"half")
    fs.pipe_file(f"{root}/features/notes.txt", b"a file of another program")
    fs.makedirs(f"{root}/photos", exist_ok=True)
    fs.pipe_file(f"{root}/photos/person.jpg", b"a file of another program")
    (home / "runs" / "amber-fox").mkdir(parents=True)
    (home / "runs" / "amber-fox" / "config.json").touch()
    for path in tmp_path.glob("store/*/*"):
        set_age(path, 10)
    return lambda: sorted(path.removeprefix(f"{root}/").split("/")[0] for path in fs.find(root))


def test_garbage_is_found_wherever_the_artifacts_are(elsewhere, monkeypatch):
    later = time.time() + 10 * DAY  # files in memory cannot be made older
    monkeypatch.setattr("tasks.operations.housekeeping.time.time", lambda: later)
    before = elsewhere()
    assert find_garbage(older_than_days=30) == []
    remove(find_garbage(older_than_days=7))
    removed = ["features", "features"]
    assert sorted([*elsewhere(), *removed]) == before
    remove(find_garbage(older_than_days=7, keep_iterations=False))
    assert sorted([*elsewhere(), *removed, "models"]) == before, "the model of iteration 1"
    assert find_garbage(older_than_days=0, keep_iterations=False) == []


def test_garbage_is_not_guessed_for_a_run_without_a_record(home, monkeypatch):
    monkeypatch.setenv("PUL_ARTIFACTS", f"memory://store-{uuid.uuid4().hex}")
    (home / "runs" / "old-fox").mkdir(parents=True)
    (home / "runs" / "old-fox" / "config.json").touch()
    with pytest.raises(DataError, match="has no record of run old-fox"):
        find_garbage(older_than_days=7)


# --- what other processes use

USER = """
import sys, time
from tasks.store.artifacts import write_bytes
write_bytes("features", "parquet", 1, b"of the other process")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def other_process(home):
    """Another process that has used the store and is still running."""
    command = [sys.executable, "-c", USER, "evaluate", "amber-fox"]
    process = subprocess.Popen(command, env=os.environ | {"PUL_HOME": str(home)}, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def no_open_runs(monkeypatch):
    monkeypatch.setattr(purge, "running_runs", list)
    monkeypatch.setattr("tasks.operations.lost_runs.running_runs", list)


def test_files_in_use_are_neither_collected_nor_purged_until_the_process_ends(store, other_process, no_open_runs, pul_here):
    refusal = rf"pul: process {other_process.pid} on \S+ \(.*evaluate amber-fox\) uses the files"
    assert re.match(refusal, pul_here("gc", "--older-than", 0))
    (store / "image.jpg").write_bytes(b"image")
    assert re.match(refusal, pul_here("purge", "--images", store / "image.jpg"))
    assert re.match(refusal, pul_here("purge", "amber-fox"))
    assert (store / "runs" / "amber-fox").exists()
    assert pul_here("gc") == 0, "files that were not used for a week are not in use"
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    assert pul_here("gc", "--older-than", 0) == 0
    assert not list(store.glob("artifacts/features/*"))
    assert len(list(store.glob("processes/*-*"))) <= 1, "the file of the killed process is removed"


def test_what_a_running_process_has_read_is_kept_although_it_is_old(store):
    """On a file system that does not keep times of access, as many are mounted."""
    artifact = write_bytes("features", "parquet", 1, b"read long ago")
    file = store / "artifacts" / artifact.uri
    set_age(file, 30)
    written, before = file.stat().st_mtime_ns, time.time()
    verify(artifact)
    assert file.stat().st_mtime_ns == written and file.stat().st_atime >= before - 1
    assert file not in [item.path for item in find_garbage(older_than_days=7)]
    os.utime(file, (time.time() - 20 * DAY, time.time() - 30 * DAY))
    assert file in [item.path for item in find_garbage(older_than_days=7)]
    assert file not in [item.path for item in find_garbage(older_than_days=7, in_use_since=time.time() - 21 * DAY)]


def test_a_process_that_begins_during_housekeeping_waits_until_it_is_done(home):
    with housekeeping() as others:
        assert others == []
        process = subprocess.Popen(
            [sys.executable, "-c", USER], env=os.environ | {"PUL_HOME": str(home)}, stdout=subprocess.PIPE, text=True
        )
        time.sleep(5)
        assert not list(home.glob("artifacts/features/*"))
    assert process.stdout.readline() == "ready\n"
    with housekeeping() as others:
        assert [user.description.split()[1] for user in others] == [str(process.pid)]
    process.kill()
    process.wait()


def test_a_read_only_home_can_be_read(home, monkeypatch):
    """Its processes cannot be registered."""
    artifact = write_bytes("features", "parquet", 1, b"features")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(users, "_gate", refuse)
    monkeypatch.setattr(users, "_register", users._register.__wrapped__)  # without its cache
    assert verify(artifact)
    with pytest.raises(DataError, match="cannot be locked"), housekeeping():
        pass
