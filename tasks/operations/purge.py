"""Removal on request: a run with everything only it has, or certain images with every pixel, feature and name that was taken from them.

Files are named by their content, so none is edited: a file that holds something of an image goes as a whole, and is computed again without
it when it is needed and the image is no longer in its data set.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pul_core.errors import DataError
from tasks.data.listing import image_files
from tasks.index import index
from tasks.operations.housekeeping import digest_of
from tasks.operations.lost_runs import lost_runs, open_runs
from tasks.store.artifacts import column, read_table
from tasks.store.home import artifact_root, home
from tasks.tracking.client import client


class Purged(NamedTuple):
    """What was removed, what of it is left (nothing, if all went well), and which models learnt from it."""

    removed: list[Path]
    left: list[Path]
    models: list[str]


def purge_run(name: str) -> Purged:
    """Remove a run: its folder, its MLflow runs with their models, and artifacts that only it refers to, as `pul gc` would in time.

    Raises:
        DataError: there is no such run, or something is running.
    """
    _refuse_what_cannot_be_seen()
    folder = home() / "runs" / name
    if folder.parent.resolve() != folder.resolve().parent or not (folder / "config.json").is_file():
        raise DataError(f"there is no run {name}")
    experiments = [experiment.experiment_id for experiment in client().search_experiments()]
    parents = client().search_runs(experiments, f"tags.`pul.kind` = 'run' and attributes.run_name = '{name}'")
    own = {link.resolve() for link in folder.rglob("*") if link.is_symlink()}
    others = {link.resolve() for link in home().glob("runs/*/**/*") if link.is_symlink() and folder not in link.parents}
    removed, left = _remove([*sorted(file for file in own - others if file.exists()), folder]), list[Path]()
    for parent in parents:
        children = client().search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        for run in (*children, parent):
            gone, stays = _forget(run)
            removed, left = removed + gone, left + stays
    return Purged(removed, [*left, *(path for path in removed if path.exists())], [])


def purge_images(digests: set[str]) -> Purged:
    """Remove every file that holds pixels, features or names of certain images. The images themselves lie in their data set and stay.

    Args:
        digests: SHA-256 of the images' files.

    Raises:
        DataError: something is running.
    """
    _refuse_what_cannot_be_seen()
    root = home()
    named = {file: rows for file in root.glob("artifacts/images/*.parquet") if len(rows := _rows_of(file, digests))}
    models = sorted(_models_of(named, root))
    files = _made_from(named, root)
    caches = [folder for folder in (root / "cache", root / "checkpoints") if folder.exists()]  # no telling whose they are
    removed = _remove(sorted(files) + caches)
    again = [file for file in root.glob("artifacts/images/*.parquet") if len(_rows_of(file, digests))]
    return Purged(removed, [*again, *(path for path in removed if path.exists())], models)


def _refuse_what_cannot_be_seen() -> None:
    lost = {run.info.run_name for run in lost_runs()}
    if running := [name for name in open_runs() if name not in lost]:
        raise DataError(f"run {running[0]} is running: stop it first")
    if artifact_root() != str(home() / "artifacts"):
        raise DataError(f"artifacts lie at {artifact_root()}, and only those below {home()} can be purged: remove them there")


def _made_from(named: dict[Path, Any], root: Path) -> set[Path]:
    """Return the tables of images with everything that was made from them, step by step: each file tells its inputs' digests."""
    files, tainted = set(named), {digest_of(file) for file in named}
    for kind in ("labels", "labelled", "decoded", "features", "centres"):  # each is made from what stands before it
        for file in root.glob(f"artifacts/{kind}/*.parquet"):
            if tainted & _inputs(file):
                files.add(file)
                tainted.add(digest_of(file))
    return files


def digests_below(places: Iterable[Path]) -> set[str]:
    """Return the digests of image files, given themselves or by their folder.

    Raises:
        DataError: there is nothing.
    """
    found = set()
    for place in places:
        if not place.exists():
            raise DataError(f"there is no {place}")
        files = [place] if place.is_file() else [place / path for path in image_files(place)]
        found |= {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    if not found:
        raise DataError("no image was given")
    return found


def digests_of_identity(path: str, identity: str, layout: str | None = None, pattern: str | None = None) -> set[str]:
    """Return the digests of all images of an identity in a data set.

    Args:
        path: as `index` takes it.
        identity: as the data set writes it; leading zeros may be left out where no identity is written without them.
        layout: as `index` takes it.
        pattern: as `index` takes it.

    Raises:
        DataError: the set tells no identities, or not this one.
    """
    images = index.fn(path, "purge", layout, pattern)
    if images.labels is None:
        raise DataError(f"{path} tells no identities: give the images themselves")
    names = read_table(images.labels)["identity"]
    wanted = pc.equal(names, identity)
    if not pc.any(wanted).as_py():
        wanted = pc.equal(pc.utf8_ltrim(names, "0"), identity.lstrip("0"))
    digests = read_table(images.images)["sha256"].filter(wanted)
    if not len(digests):
        raise DataError(f"{path} has no identity {identity}")
    return set(digests.drop_null().to_pylist())


def _rows_of(file: Path, digests: set[str]) -> Any:
    table = pq.read_table(file, columns=["row", "sha256"])
    return column(table.filter(pc.is_in(table["sha256"], value_set=_array(digests))), "row")


def _array(values: set[str]) -> Any:
    return pa.array(sorted(values), pa.string())


def _models_of(named: dict[Path, Any], root: Path) -> set[str]:
    """Name the models that learnt from these rows: by the reliable sets of a target, or all that came from a source."""
    found = set()
    for run in root.glob("runs/*"):
        iterations = list(run.glob("iteration=*"))
        if any(link.resolve() in named for link in run.glob("source-*-images.parquet")):
            found |= {f"{run.name}/{folder.name}" for folder in iterations}
        if (rows := named.get((run / "images.parquet").resolve())) is None:
            continue
        for reliable in run.glob("iteration=*/reliable.parquet"):
            if np.isin(rows, column(pq.read_table(reliable, columns=["row"]), "row")).any():
                found.add(f"{run.name}/{reliable.parent.name}")
    return found


def _inputs(file: Path) -> set[str]:
    """Return every digest that stands in a file's provenance."""
    about = (pq.read_schema(file).metadata or {}).get(b"pul.provenance", b"{}")
    return set(_strings(json.loads(about)))


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _remove(paths: list[Path]) -> list[Path]:
    """Remove files and folders and return every file that was there."""
    removed = []
    for path in paths:
        removed += [part for part in path.rglob("*") if part.is_file() and not part.is_symlink()] if path.is_dir() else [path]
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for link in home().glob("runs/*/**/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    return removed


def _forget(run: Any) -> tuple[list[Path], list[Path]]:
    """Delete an MLflow run with its model and the registered versions of it; return the files that are gone and places out of reach."""
    for version in client().search_model_versions(f"run_id = '{run.info.run_id}'"):
        client().delete_model_version(version.name, version.version)
    files, out_of_reach = list[Path](), list[Path]()
    if model := run.data.tags.get("pul.model_id"):
        place = Path(client().get_logged_model(model).artifact_location.removeprefix("file://"))
        if place.exists():
            files = _remove([place])
        else:
            out_of_reach = [place]
        client().delete_logged_model(model)
    client().delete_run(run.info.run_id)
    return files, out_of_reach
