import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.store import artifacts
from tasks.store.artifacts import (
    DamagedArtifactError,
    column,
    locate,
    read_table,
    vectors,
    verify,
    write_batches,
    write_table,
    writing,
)

TABLE = pa.table({"row": [0, 1, 2], "feature": vectors(np.arange(6, dtype=np.float32).reshape(3, 2))})


def test_a_table_comes_back_as_it_was_and_other_tools_open_it(home):
    artifact = write_table("features", TABLE)
    assert read_table(artifact).equals(TABLE)
    assert column(read_table(artifact), "feature").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert pd.read_parquet(locate(artifact))["row"].tolist() == [0, 1, 2]
    import duckdb

    assert duckdb.sql(f"select sum(row) from '{locate(artifact)}'").fetchall() == [(3,)]


def test_the_name_is_the_digest_of_the_bytes(home):
    artifact = write_table("features", TABLE)
    assert hashlib.sha256(Path(locate(artifact)).read_bytes()).hexdigest() == artifact.sha256
    assert artifact.sha256.startswith(Path(artifact.uri).stem)


def test_two_equal_writes_are_one_file(home):
    first, second = write_table("features", TABLE), write_table("features", TABLE)
    assert first == second
    assert len(list((home / "artifacts" / "features").iterdir())) == 1


def test_batches_give_the_same_content_as_the_whole(home):
    batches = [TABLE.slice(0, 2).to_batches()[0], TABLE.slice(2).to_batches()[0]]
    assert read_table(write_batches("features", TABLE.schema, iter(batches), 3)).equals(TABLE)


def test_nothing_half_written_stays(home):
    with pytest.raises(KeyboardInterrupt), writing("models", "safetensors", 1) as writer:
        writer.write(b"half")
        raise KeyboardInterrupt
    assert list((home / "artifacts" / "models").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_damage_is_noticed(home, damage):
    artifact = write_table("features", TABLE)
    path = Path(verify(artifact))
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if damage == "flip" else data[:-3])
        os.utime(path, ns=(1, 1))  # whatever the clock says, the state of the file is another
    with pytest.raises(DamagedArtifactError, match=artifact.uri):
        read_table(artifact)
    assert verify(write_table("features", TABLE)) == str(path), "writing it again mends it"


def test_a_digest_is_checked_once_a_process_and_state(home, monkeypatch):
    artifact = write_table("features", TABLE)
    verify(artifact)
    monkeypatch.setattr(artifacts.hashlib, "sha256", lambda: pytest.fail("read again"))
    verify(artifact)


def test_what_this_process_wrote_is_not_read_again_unless_it_has_changed(home, monkeypatch):
    artifact = write_table("features", TABLE)
    with monkeypatch.context() as patch:
        patch.setattr(artifacts.hashlib, "file_digest", lambda *args: pytest.fail("read again"))
        path = Path(verify(artifact))
    os.utime(path, ns=(1, 1))
    verify(artifact)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, ns=(2, 2))
    with pytest.raises(DamagedArtifactError, match="damaged"):
        verify(artifact)


def test_artifacts_may_lie_at_any_url(home, monkeypatch):
    monkeypatch.setenv("PUL_ARTIFACTS", f"memory://{uuid.uuid4().hex}")
    artifact = write_table("features", TABLE)
    assert locate(artifact).startswith("memory://")
    assert read_table(artifact).equals(TABLE)
    assert not (home / "artifacts").exists()


def test_a_moved_root_still_holds_what_references_say(home, monkeypatch, tmp_path):
    artifact = write_table("features", TABLE)
    moved = tmp_path / "moved"
    home.rename(moved)
    monkeypatch.setenv("PUL_HOME", str(moved))
    assert read_table(artifact).equals(TABLE)
