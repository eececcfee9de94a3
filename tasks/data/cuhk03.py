"""Extraction of CUHK03 from its authors' cuhk-03.mat, which contains all images: writes PNG files and a manifest for every protocol."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pul_core.errors import DataError
from tasks.data.folders import atomic_folder
from tasks.data.listing import ListedImage
from tasks.data.published_layouts import read_new_protocol
from tasks.engine.progress import progress

BOXES = {"detected": "detected", "labeled": "labelled"}  # kind of boxes: its name in cuhk-03.mat -> its name in the manifests
SCHEMA = pa.schema([("path", pa.string()), ("identity", pa.string()), ("camera", pa.string()), ("split", pa.string())])


def extract_cuhk03(mat: Path, out: Path) -> list[str]:
    """Write the images of cuhk-03.mat as PNG files, with the manifests of its protocols.

    Manifests: detected-old-01.parquet to -20 and labelled-old-01.parquet to -20, one for each of the file's 20 test sets of 100 identities
    (camera 1 of a pair is the query, camera 2 the gallery, all other identities are train); detected-new.parquet and labelled-new.parquet
    if cuhk03_new_protocol_config_detected.mat and ..._labeled.mat are in the folder of cuhk-03.mat or in its parent.

    Args:
        mat: cuhk-03.mat, in MATLAB 7.3 format.
        out: a folder that does not exist yet; it is created only if everything succeeds.

    Returns:
        The names of the manifests.

    Raises:
        DataError: the file is not CUHK03's, or h5py is not installed.

    Source: Li et al. 2014 (file and old protocol); Zhong et al. 2017 (new protocol).
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("reading cuhk-03.mat requires the package h5py: pip install h5py") from error
    mat = mat.expanduser()
    if not mat.is_file():
        raise DataError(f"{mat} is not a file: give cuhk-03.mat from cuhk03_release.zip")
    with atomic_folder(out) as partial:
        try:
            with h5py.File(mat) as file:
                names = {boxes: _write_images(file, boxes, partial / f"images_{boxes}") for boxes in BOXES}
                test_sets = [{(int(pair), int(person)) for pair, person in file[ref][()].T} for ref in file["testsets"][()].ravel()]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # a fault of the disk, not of the file
            raise DataError(
                f"{mat} is not CUHK03's cuhk-03.mat, a MATLAB 7.3 file with detected, labeled and testsets ({error}): give the original"
            ) from error
        for boxes, image_names in names.items():
            for number, test_set in enumerate(test_sets, 1):
                _write_manifest(partial / f"{BOXES[boxes]}-old-{number:02d}.parquet", boxes, _old_protocol(image_names, test_set))
            configs = [folder / f"cuhk03_new_protocol_config_{boxes}.mat" for folder in mat.resolve().parents[:2]]
            if config := next(filter(Path.is_file, configs), None):
                _write_manifest(partial / f"{BOXES[boxes]}-new.parquet", boxes, read_new_protocol(config))
        return sorted(path.name for path in partial.glob("*.parquet"))


def _write_images(file: Any, boxes: str, folder: Path) -> list[str]:
    """Write the images of one kind of boxes under their usual names PAIR_PERSON_VIEW_IMAGE.png and return these names."""
    folder.mkdir()
    names = []
    pairs = [file[ref][()] for ref in file[boxes][()].ravel()]  # each (10, people): h5py returns MATLAB's arrays transposed
    with progress(f"extract {boxes}", sum(pair.size for pair in pairs)) as progress_bar:
        for pair, cells in enumerate(pairs, 1):
            for person, images in enumerate(cells.T, 1):
                for image, ref in enumerate(images, 1):
                    pixels = file[ref][()]
                    if pixels.ndim == 3:  # an empty cell is stored as its two dimensions
                        names.append(f"{pair}_{person:03d}_{1 if image <= 5 else 2}_{image:02d}.png")
                        Image.fromarray(np.ascontiguousarray(pixels.T.astype(np.uint8))).save(folder / names[-1], compress_level=1)
                progress_bar.advance(len(images))
    return names


def _old_protocol(names: list[str], test_set: set[tuple[int, int]]) -> Iterator[ListedImage]:
    """Yield the images with identity PAIR_PERSON, split by a test set of pairs and people."""
    for name in names:
        pair, person, view, _ = name.split("_")
        test_split = "query" if view == "1" else "gallery"
        yield ListedImage(name, f"{pair}_{person}", view, test_split if (int(pair), int(person)) in test_set else "train")


def _write_manifest(path: Path, boxes: str, images: Iterable[ListedImage]) -> None:
    rows = [
        {"path": f"images_{boxes}/{image.path}", "identity": str(image.pid), "camera": str(image.camid), "split": image.split}
        for image in images
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
