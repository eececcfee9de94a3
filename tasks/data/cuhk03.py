"""CUHK03 as its authors hand it out, all images inside cuhk-03.mat: takes them out once, with a manifest for every protocol."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pul_core.errors import DataError
from tasks.data.folders import writing_folder
from tasks.data.published_layouts import CUHK03_NAME, new_protocol
from tasks.engine.progress import progress

BOXES = {"detected": "detected", "labeled": "labelled"}  # in the file, in our manifests' names
SCHEMA = pa.schema([("path", pa.string()), ("identity", pa.string()), ("camera", pa.string()), ("split", pa.string())])


def extract_cuhk03(mat: Path, out: Path) -> list[str]:
    """Write the images of cuhk-03.mat as PNG and the manifests of its protocols.

    Manifests: detected-old-01.parquet to -20 and labelled-old-01.parquet to -20, one for each of the file's 20 test sets of 100 people
    (camera 1 of a pair asks, camera 2 answers, everybody else is train); detected-new.parquet and labelled-new.parquet, if
    cuhk03_new_protocol_config_detected.mat and ..._labeled.mat lie beside cuhk-03.mat or one folder above.

    Args:
        mat: the file, MATLAB 7.3.
        out: a folder that does not exist yet; it appears whole or not at all.

    Returns:
        The manifests' names.

    Source: Li et al. 2014 (file and old protocol); Zhong et al. 2017 (new protocol).

    Raises:
        DataError: the file is another, or h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("cuhk-03.mat can only be read with the package h5py: pip install h5py") from error
    mat = mat.expanduser()
    if not mat.is_file():
        raise DataError(f"{mat} is no file: give cuhk-03.mat from cuhk03_release.zip")
    with writing_folder(out) as partial:
        try:
            with h5py.File(mat) as file:
                names = {boxes: _write_images(file, boxes, partial / f"images_{boxes}") for boxes in BOXES}
                test_sets = [{(int(pair), int(person)) for pair, person in file[ref][()].T} for ref in file["testsets"][()].ravel()]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk, not the file
            raise DataError(f"{mat} is not CUHK03's cuhk-03.mat, MATLAB 7.3 with detected, labeled, testsets ({error})") from error
        for boxes, written in names.items():
            for number, test in enumerate(test_sets, 1):
                _write_manifest(partial / f"{BOXES[boxes]}-old-{number:02d}.parquet", boxes, _old_protocol(written, test))
            for folder in (mat.resolve().parent, mat.resolve().parent.parent):
                config = folder / f"cuhk03_new_protocol_config_{boxes}.mat"
                if config.is_file():
                    _write_manifest(partial / f"{BOXES[boxes]}-new.parquet", boxes, new_protocol(config))
                    break
        return sorted(path.name for path in partial.glob("*.parquet"))


def _write_images(file: Any, boxes: str, folder: Path) -> list[str]:
    """Write one kind of boxes as PAIR_PERSON_VIEW_IMAGE.png, the names that everybody uses for them, and return these."""
    folder.mkdir()
    names = []
    pairs = [file[ref][()] for ref in file[boxes][()].ravel()]  # each (10, people): MATLAB's arrays come transposed
    with progress(f"extract {boxes}", sum(pair.size for pair in pairs)) as shown:
        for pair, cells in enumerate(pairs, 1):
            for person, images in enumerate(cells.T, 1):
                for image, ref in enumerate(images, 1):
                    pixels = file[ref][()]
                    if pixels.ndim == 3:  # an empty cell comes as its two sizes
                        names.append(f"{pair}_{person:03d}_{1 if image <= 5 else 2}_{image:02d}.png")
                        Image.fromarray(np.ascontiguousarray(pixels.T.astype(np.uint8))).save(folder / names[-1], compress_level=1)
                shown.advance(len(images))
    return names


def _old_protocol(names: list[str], test: set[tuple[int, int]]) -> Iterator[tuple[str, str, str]]:
    """Yield name, split and identity; an identity is PAIR_PERSON."""
    for name in names:
        pair, person, view, _ = name.split("_")
        tested = (int(pair), int(person)) in test
        yield name, ("query" if view == "1" else "gallery") if tested else "train", f"{pair}_{person}"


def _write_manifest(path: Path, boxes: str, told: Iterator[tuple[str, str, Any]]) -> None:
    rows = []
    for name, split, pid in told:
        match = CUHK03_NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{path.name}: {name!r} is not named like 1_001_1_01.png")
        rows.append({"path": f"images_{boxes}/{name}", "identity": str(pid), "camera": match[1], "split": split})
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
