"""Deletion on request: of a run with the artifacts that only it uses, or of all data derived from certain images; reports in both cases.

Files are named by the digest of their content and are never edited: a file that contains data of a deleted image is deleted as a whole.
Steps that need it compute it again, without the image if that is no longer in its data set.
"""

import contextlib
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from mlflow.entities import Run

from pul_core.errors import DataError
from tasks.data.listing import iter_image_paths
from tasks.index import index
from tasks.operations.housekeeping import digest_of, remove_dangling_links
from tasks.operations.lost_runs import running_runs
from tasks.report.records import delete_reports
from tasks.store.artifacts import column, read_table
from tasks.store.home import artifact_root, home, is_default_store
from tasks.store.runs import find_run_folder
from tasks.store.users import housekeeping
from tasks.tracking.client import client, delete_logged, search_all_runs, search_runs
from tasks.tracking.results import IS_RUN, RUN_ID_TAG, find_run, run_id_of

Rows = npt.NDArray[np.int64]


class PurgeResult(NamedTuple):
    """The removed files, those that could not be removed (normally none), and the models (RUN/iteration=N) trained on the images."""

    removed: list[Path]
    remaining: list[Path]
    models: list[str]


def purge_run(reference: str) -> PurgeResult:
    """Delete a run: its folder, reports and exports, its MLflow runs with their models, and the artifacts that only this run refers to.

    Args:
        reference: the id of the run, its name, or a prefix of its id.

    Raises:
        DataError: the run does not exist, several runs can be meant, or something is running.
    """
    with _exclusive_store():
        run_folder = find_run_folder(reference)
        run_id = run_folder.name if run_folder else run_id_of(find_run(reference))
        folder = home() / "runs" / run_id
        referenced = {link.resolve() for link in folder.rglob("*") if link.is_symlink()}
        shared = {link.resolve() for link in home().glob("runs/*/**/*") if link.is_symlink() and folder not in link.parents}
        exports = [home() / "exports" / run_id] if (home() / "exports" / run_id).exists() else []
        removed = delete_reports(run_id)
        removed += _delete([*sorted(file for file in referenced - shared if file.exists()), folder, *exports])
        unreachable = []
        for run in _mlflow_runs(run_id):
            if logged := delete_logged(run.info.run_id):
                removed.append(logged)
            location = _delete_mlflow_run(run)
            if location and location.exists():
                removed += _delete([location])
            elif location:
                unreachable.append(location)
    return PurgeResult(removed, [*unreachable, *(path for path in removed if path.exists())], [])


def purge_images(digests: set[str]) -> PurgeResult:
    """Delete every file that contains pixels, features or names of certain images. The image files in the data set are not touched.

    Args:
        digests: SHA-256 of the image files.

    Raises:
        DataError: something is running.
    """
    with _exclusive_store():
        rows_of_tables = _rows_of_tables(digests)
        models = sorted(_models_trained_on(rows_of_tables))
        # The files of caches and checkpoints do not name their images.
        caches = [folder for folder in (home() / "cache", home() / "checkpoints") if folder.exists()]
        removed = [file for run in _runs_with(rows_of_tables) for file in delete_reports(run)]
        removed += _delete(sorted(_derived_files(rows_of_tables)) + caches)
        return PurgeResult(removed, [*_rows_of_tables(digests), *(path for path in removed if path.exists())], models)


def digests_of_images(paths: Iterable[Path]) -> set[str]:
    """Return the SHA-256 of image files.

    Args:
        paths: image files and folders of images.

    Raises:
        DataError: a path does not exist, or there are no images.
    """
    digests = set()
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist: give an image file or a folder of images")
        files = [path] if path.is_file() else [path / name for name in iter_image_paths(path)]
        digests |= {digest_of(file) for file in files}
    if not digests:
        raise DataError("there are no images to purge: give at least one image file or a folder that contains images")
    return digests


def digests_of_identity(path: str, identity: str, layout: str | None = None, pattern: str | None = None) -> set[str]:
    """Return the SHA-256 of all images of an identity in a data set.

    Args:
        path: the data set, see `tasks.index.index`.
        identity: the name of the identity in the data set; leading zeros are optional unless names differ only in them.
        layout: see `tasks.index.index`.
        pattern: see `tasks.index.index`.

    Raises:
        DataError: the data set has no identities, or not this one.
    """
    images = index.fn(path, "purge", layout, pattern)
    if images.labels is None:
        raise DataError(f"{path} has no identities: give the images themselves")
    names = read_table(images.labels)["identity"]
    is_match = pc.equal(names, identity)
    if not pc.any(is_match).as_py():
        is_match = pc.equal(pc.utf8_ltrim(names, "0"), identity.lstrip("0"))
    digests = read_table(images.images)["sha256"].filter(is_match)
    if not len(digests):
        raise DataError(f"{path} has no identity {identity}")
    return set(digests.drop_null().to_pylist())


@contextlib.contextmanager
def _exclusive_store() -> Iterator[None]:
    """Keep other processes from using the store during the block.

    Raises:
        DataError: a run is running, another process uses the store, or the artifacts are not on this disk.
    """
    if running := running_runs():
        raise DataError(f"run {running[0]} is running: stop it first")
    if not is_default_store():
        raise DataError(f"the artifacts are at {artifact_root()}, but only those below {home()} can be purged: delete them there")
    with housekeeping() as users:
        if users:
            raise DataError(f"{users[0].description} uses the files: wait until it ends, or stop it")
        yield


def _mlflow_runs(run_id: str) -> list[Run]:
    """Return the MLflow runs of a run, those of its iterations first."""
    parents = search_all_runs(f"{IS_RUN} and tags.`{RUN_ID_TAG}` = '{run_id}'")
    # The id of a run of an older version is its name.
    parents += [run for run in search_all_runs(f"{IS_RUN} and attributes.run_name = '{run_id}'") if RUN_ID_TAG not in run.data.tags]
    nested = [
        run for parent in parents for run in search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    ]
    return nested + parents


def _rows_of_tables(digests: set[str]) -> dict[Path, Rows]:
    """Return the images tables that list certain images, with the rows of these images."""
    digest_array = pa.array(sorted(digests), pa.string())
    rows_of_tables = {}
    for file in home().glob("artifacts/images/*.parquet"):
        table = pq.read_table(file, columns=["row", "sha256"])
        if len(rows := column(table.filter(pc.is_in(table["sha256"], value_set=digest_array)), "row")):
            rows_of_tables[file] = rows
    return rows_of_tables


def _derived_files(images_tables: Iterable[Path]) -> set[Path]:
    """Return the images tables and all files derived from them, following the digests of the inputs in each file's provenance."""
    files = set(images_tables)
    digests = {digest_of(file) for file in files}
    # Each kind is derived from earlier ones only.
    for kind in ("labels", "labelled", "decoded", "cameras", "statistics", "features", "centres"):
        for file in home().glob(f"artifacts/{kind}/*.parquet"):
            if digests & _input_digests(file):
                files.add(file)
                digests.add(digest_of(file))
    return files


def _input_digests(file: Path) -> set[str]:
    """Return the digests in a file's provenance."""
    provenance = (pq.read_schema(file).metadata or {}).get(b"pul.provenance", b"")
    return set(re.findall(r'"([0-9a-f]{64})"', provenance.decode()))


def _runs_with(images_tables: Iterable[Path]) -> list[str]:
    """Return the runs whose target is listed in one of these images tables."""
    tables = set(images_tables)
    return sorted(link.parent.name for link in home().glob("runs/*/images.parquet") if link.resolve() in tables)


def _models_trained_on(rows_of_tables: dict[Path, Rows]) -> set[str]:
    """Return the models trained on certain images: as source images, or as reliable images of the target."""
    models = set()
    for run in home().glob("runs/*"):
        if any(link.resolve() in rows_of_tables for link in run.glob("source-*-images.parquet")):
            models |= {f"{run.name}/{folder.name}" for folder in run.glob("iteration=*")}
        rows = rows_of_tables.get((run / "images.parquet").resolve(), np.empty(0, np.int64))
        for reliable in run.glob("iteration=*/reliable.parquet"):
            if np.isin(rows, column(pq.read_table(reliable, columns=["row"]), "row")).any():
                models.add(f"{run.name}/{reliable.parent.name}")
    return models


def _delete(paths: list[Path]) -> list[Path]:
    """Delete files and folders, and the links of runs to them; return the deleted files."""
    deleted = []
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            deleted += [part for part in path.rglob("*") if part.is_file() and not part.is_symlink()]
            shutil.rmtree(path)
        else:
            deleted.append(path)
            path.unlink(missing_ok=True)
    remove_dangling_links("runs/*/**/*")
    return deleted


def _delete_mlflow_run(run: Run) -> Path | None:
    """Delete an MLflow run, its model and the registered versions of it; return the model's folder, whose files remain to be deleted."""
    for version in client().search_model_versions(f"run_id = '{run.info.run_id}'"):
        client().delete_model_version(version.name, version.version)
    location = None
    if model_id := run.data.tags.get("pul.model_id"):
        location = Path(client().get_logged_model(model_id).artifact_location.removeprefix("file://"))
        client().delete_logged_model(model_id)
    client().delete_run(run.info.run_id)
    return location
