"""Records of which artifacts runs refer to, in a store outside ``$PUL_HOME``: ``$PUL_ARTIFACTS/runs/ID.json`` and ``ID/iteration=3.json``.

Below ``$PUL_HOME`` the links in the folders of runs are enough. A store elsewhere can be at a URL, where there are no links, and used by
several machines, none of which has the folders of all runs.
"""

import json

import fsspec

from tasks.store.artifacts import Artifact
from tasks.store.home import artifact_root, is_default_store

RECORDS = "runs"


def write_record(name: str, artifacts: list[Artifact]) -> None:
    """Record the artifacts that a run refers to, unless the store is below ``$PUL_HOME``.

    Args:
        name: ``ID``, or ``ID/iteration=3`` for an iteration.
        artifacts: all artifacts of the run itself, or of the iteration.
    """
    if is_default_store():
        return
    fs, root = fsspec.core.url_to_fs(artifact_root().rstrip("/"))
    path = f"{root}/{RECORDS}/{name}.json"
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, json.dumps([artifact.uri for artifact in artifacts]).encode())


def read_records() -> dict[str, list[str]]:
    """Return the paths below the artifact root that each record lists, by the record's name; empty if the store is below ``$PUL_HOME``."""
    if is_default_store():
        return {}
    fs, root = fsspec.core.url_to_fs(artifact_root().rstrip("/"))
    folder = f"{root}/{RECORDS}"
    paths = fs.find(folder) if fs.exists(folder) else []
    return {path.rpartition(f"/{RECORDS}/")[2].removesuffix(".json"): json.loads(fs.cat_file(path)) for path in paths}
