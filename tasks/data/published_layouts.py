"""Readers of published data sets, in the form in which their authors distribute them.

Images are listed, not opened; only the lists of a data set are read. Where a data set numbers identities from 0, they become strings,
because the integer 0 means a distractor.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pul_core.errors import DataError
from tasks.data.cells import SPLITS, compact, split_of_name
from tasks.data.listing import ListedImage, folder_names, iter_image_paths, validate_image_path
from tasks.data.mars import list_mars

Pid = TypeVar("Pid", int, str)
MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
MARKET_FOLDERS = {"gallery": "bounding_box_test", "train": "bounding_box_train", "query": "query"}
MARKET_PREFIX = "bounding_box_"
MARKET_EXTRAS = ("multi_query", "gt_query")  # which its authors distribute beside the splits
VERI_PREFIX = "image_"
VERI_NAME = re.compile(r".*/\d+_c\d{3}_[^/]*")
LTCC_NAME = re.compile(r".*/(\d{3})_\d+_c(\d+)_[^/]*")
GRID_NAME = re.compile(r".*/(\d{4})_(\d+)_\d+(?:_-?\d+){4}\.jpe?g")
CUHK01_NAME = re.compile(r"campus/(?:[^/]+/)*(\d{4})(\d{3})\.png")
CUHK03_NAME = re.compile(r"\d_\d{3}_([12])_\d{2}\.png")
MSMT17_NAME = re.compile(r"(?:.*/)?\d+_\d+_(\d+)_[^/]*")
MSMT17_LISTS = {"list_train.txt": "train", "list_val.txt": "train", "list_query.txt": "query", "list_gallery.txt": "gallery"}
VIPER_NAME = re.compile(r"cam_[ab]/(\d+)_[^/]*")
NUM_HALVES = 10
PUL_LISTS = {"train.list": "train", "query.list": "query", "test.list": "gallery"}


def list_market1501(root: Path, prefix: str = MARKET_PREFIX) -> Iterator[ListedImage]:
    """List Market-1501, DukeMTMC-reID, VeRi-776, CUHK03-NP in the same form, or what an annotation tool exports in it.

    A file name begins with identity and camera; identity -1 is junk, 0000 a distractor. A folder whose name does not tell its split, such
    as bounding_box_default, is train. Other folders are not read, except for one of queries; those that look like splits are noted.

    Args:
        root: the folder that holds query, bounding_box_train and bounding_box_test.
        prefix: how the names of the folders begin: image_ for VeRi-776.

    Source: Zheng et al. 2015; Zheng et al. 2017; Zhong et al. 2017; Liu et al. 2016.

    Raises:
        DataError: a file name does not begin with an identity and a camera.
    """
    folders = folder_names(root)
    is_read = {folder: folder.lower().startswith(prefix) or SPLITS.get(compact(folder)) == "query" for folder in folders}
    unread = [folder for folder in folders if not is_read[folder] and split_of_name(folder) and folder.lower() not in MARKET_EXTRAS]
    unread_notes = tuple(f"folder {folder!r} looks like a split, but is not read: call it {prefix}... to read it" for folder in unread)
    for folder in filter(is_read.get, folders):
        split = SPLITS.get(compact(folder.lower().removeprefix(prefix)))
        notes = () if split else (f"folder {folder!r} is read as training images: rename it to {prefix}test if it is the gallery",)
        for path in iter_image_paths(root, f"{folder}/"):
            match = MARKET_NAME.match(path.rsplit("/", 1)[1])
            if match is None:
                raise DataError(f"{root / path} is not named like Market-1501's 0002_c1s1_000451_03.jpg: rename it, or change --layout")
            yield ListedImage(path, int(match[1]), int(match[2]), split or "train", notes=notes + unread_notes)
            unread_notes = ()


def list_ltcc(root: Path) -> Iterator[ListedImage]:
    """List LTCC: train, query and test, with files named PERSON_CLOTHES_cCAMERA_FRAME.png. Clothes are not used.

    Source: Qian et al. 2020.

    Raises:
        DataError: a file is named differently.
    """
    for folder in folder_names(root):
        split = SPLITS.get(folder.lower())
        for path in iter_image_paths(root, f"{folder}/") if split else ():
            match = LTCC_NAME.fullmatch(path)
            if match is None:
                raise DataError(f"{root / path} is not named like LTCC's 001_1_c5_015833.png (person, clothes, camera, frame): remove it")
            yield ListedImage(path, match[1], int(match[2]), split or "train")


def list_grid(root: Path, half: int | None = None) -> Iterator[ListedImage]:
    """List GRID: the images in probe are queries, those in gallery the gallery, of which 0000 are distractors.

    Args:
        root: the folder that holds probe and gallery.
        half: number of the random half of the identities that is train, from 1 to `NUM_HALVES`; None keeps all identities for scoring.

    Source: Loy, Xiang, Gong 2009; the halves are ours.

    Raises:
        DataError: a file is named differently.
    """
    records = []
    for folder in folder_names(root):
        for path in iter_image_paths(root, f"{folder}/") if folder.lower() in ("probe", "gallery") else ():
            match = GRID_NAME.fullmatch(path)
            if match is None:
                raise DataError(f"{root / path} is not named like GRID's 0001_1_25004_107_32_106_221.jpeg (identity, camera): remove it")
            records.append((path, int(match[1]), int(match[2]), SPLITS[folder.lower()]))
    train = _half_of({pid for _, pid, _, _ in records if pid}, half)
    for path, pid, camid, split in records:
        yield ListedImage(path, pid, camid, "train" if pid in train else split)


def list_msmt17(root: Path) -> Iterator[ListedImage]:
    """List MSMT17, first or second version: four lists, 15 cameras; list_train and list_val together are train (32,621 images).

    Training and test identities are numbered from 0 separately: identity 7 becomes ``train/7`` or ``test/7``.

    Source: Wei et al. 2018.

    Raises:
        DataError: a list or a folder is missing, or a line is not `path label`.
    """
    for name, split in MSMT17_LISTS.items():
        part = "train" if split == "train" else "test"
        folder = next((name for name in folder_names(root) if re.fullmatch(rf"(mask_)?{part}(_v\d)?", name.lower())), None)
        if folder is None:
            raise DataError(f"{root} has MSMT17's {name}, but no folder {part} or mask_{part}_v2: put the images there")
        for path, label, origin in _list_lines(root / name, root / folder):
            match = MSMT17_NAME.fullmatch(path)
            if match is None or label is None:
                raise DataError(
                    f"{origin} is not an MSMT17 line such as 0000/0000_000_01_0303morning_0015_0.jpg 0 (the third number is the camera): "
                    "correct it"
                )
            yield ListedImage(f"{folder}/{path}", f"{part}/{label}", int(match[1]), split)


def list_cuhk01(root: Path) -> Iterator[ListedImage]:
    """List CUHK01: campus/PPPPIII.png, images 1 and 2 from camera 1, images 3 and 4 from camera 2.

    The authors publish no split. Ours is fixed: the first half of the identities in ascending order (485 of 971) is train; of the others,
    camera 1 is the query and camera 2 the gallery.

    Source: Li, Zhao, Wang 2012; the split is ours.

    Raises:
        DataError: a file is named differently.
    """
    records = []
    for path in iter_image_paths(root, "campus/"):
        match = CUHK01_NAME.fullmatch(path)
        if match is None or not 1 <= int(match[2]) <= 4:
            raise DataError(f"{root / path} is not named like CUHK01's 0001001.png (identity, then image 001 to 004): remove it")
        records.append((path, int(match[1]), (int(match[2]) + 1) // 2))
    pids = sorted({pid for _, pid, _ in records})
    train = set(pids[: len(pids) // 2])
    for path, pid, camid in records:
        yield ListedImage(path, pid, camid, "train" if pid in train else ("query", "gallery")[camid - 1])


def list_viper(root: Path, half: int | None = None) -> Iterator[ListedImage]:
    """List VIPeR: one image per identity in cam_a, the query, and one in cam_b, the gallery.

    Args:
        root: the folder that holds cam_a and cam_b.
        half: number of the random half of the identities that is train, from 1 to `NUM_HALVES`; None keeps all identities for scoring.

    Source: Gray, Brennan, Tao 2007; the halves are ours (NumPy's PCG64 seeded with the number of the half).

    Raises:
        DataError: a file is named differently.
    """
    records = []
    for camid, folder in enumerate(("cam_a", "cam_b"), 1):
        for path in iter_image_paths(root, f"{folder}/"):
            match = VIPER_NAME.fullmatch(path)
            if match is None:
                raise DataError(f"{root / path} is not named like VIPeR's cam_a/000_45.bmp (identity, then angle): remove it")
            records.append((path, match[1], camid))
    train = _half_of({pid for _, pid, _ in records}, half)
    for path, pid, camid in records:
        yield ListedImage(path, pid, camid, "train" if pid in train else ("query", "gallery")[camid - 1])


def _half_of(pids: set[Pid], half: int | None) -> set[Pid]:
    """Return one of the fixed random halves of some identities; an empty set for None."""
    ordered = sorted(pids)
    order = np.random.default_rng(half).permutation(len(ordered))
    return {ordered[position] for position in order[: len(ordered) // 2]} if half else set()


def list_cuhk03_np(root: Path, boxes: str) -> Iterator[ListedImage]:
    """List CUHK03 with the new protocol: PNG files extracted from cuhk-03.mat, split by the protocol's configuration file.

    Args:
        root: the folder that holds images_`boxes` and cuhk03_new_protocol_config_`boxes`.mat.
        boxes: detected or labeled.

    Source: Zhong et al. 2017.

    Raises:
        DataError: the configuration is missing or invalid, or a file is named differently.
    """
    config = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    if not config.is_file():
        raise DataError(f"{config} is missing: put the new protocol's configuration there, or give a manifest made by `pul data extract`")
    for image in read_new_protocol(config):
        yield image._replace(path=validate_image_path(f"images_{boxes}/{image.path}", str(config), root))


def read_new_protocol(config: Path) -> Iterator[ListedImage]:
    """Yield the images of CUHK03's new protocol, with file names as paths, split by split, in the order of the file.

    Raises:
        DataError: the file is not such a configuration, or an image is named differently.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        variables = loadmat(config)
        names = [str(name.item()) for name in variables["filelist"].ravel()]
        labels = variables["labels"].ravel().tolist()
        rows = {split: variables[f"{split}_idx"].ravel().astype(int) - 1 for split in ("train", "query", "gallery")}  # MATLAB counts from 1
        images = [(names[row], int(labels[row]), split) for split in rows for row in rows[split]]
    except (MatReadError, KeyError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise DataError(
            f"{config} is not the configuration of CUHK03's new protocol ({error}): use the file from Zhong et al.'s re-ranking code"
        ) from error
    for name, pid, split in images:
        match = CUHK03_NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{config}: {name!r} is not named like 1_001_1_01.png (the third number is the camera): use the original file")
        yield ListedImage(name, pid, int(match[1]), split)


def list_pul_lists(root: Path) -> Iterator[ListedImage]:
    """List the images in the lists that PUL's authors publish: train.list (`name label`, -1: unlabelled), query.list and test.list (names).

    Images are in bounding_box_train, query and bounding_box_test where these folders exist, and otherwise beside the lists. Identity and
    camera come from names in Market-1501's form; for other names the label is the identity, and there is no camera.

    Args:
        root: the folder of the three lists, or a single list, all of which is then train (25train.list).

    Source: Fan et al. 2018, the released code.

    Raises:
        DataError: a line is not valid.
    """
    base, lists = (root.parent, {root.name: "train"}) if root.is_file() else (root, PUL_LISTS)
    for name, split in lists.items():
        if not (base / name).is_file():
            continue
        folder = f"{MARKET_FOLDERS[split]}/" if (base / MARKET_FOLDERS[split]).is_dir() else ""
        for path, label, _ in _list_lines(base / name, base / folder):
            match = MARKET_NAME.match(path.rsplit("/", 1)[-1])
            pid = None if label == "-1" else int(match[1]) if match else label
            yield ListedImage(folder + path, pid, int(match[2]) if match else None, split)


def _list_lines(file: Path, folder: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield path, label (an integer as text, or None) and origin of each line `path` or `path label`."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text, origin = line.strip(), f"{file}, line {number}"
                match = re.fullmatch(r"(.*?)(?:\s+(-?\d+))?", text)
                if text and match:
                    yield validate_image_path(match[1], origin, folder), match[2], origin
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing, so the data set is incomplete: copy it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a text file in UTF-8: give a list of images, one on each line") from error


READERS: dict[str, Callable[[Path], Iterator[ListedImage]]] = {
    "market1501": list_market1501,
    "msmt17": list_msmt17,
    "cuhk01": list_cuhk01,
    "cuhk03-np-detected": partial(list_cuhk03_np, boxes="detected"),
    "cuhk03-np-labelled": partial(list_cuhk03_np, boxes="labeled"),
    "viper": list_viper,
    **{f"viper-{half}": partial(list_viper, half=half) for half in range(1, NUM_HALVES + 1)},
    "veri776": partial(list_market1501, prefix=VERI_PREFIX),
    "ltcc": list_ltcc,
    "mars": list_mars,
    "grid": list_grid,
    **{f"grid-{half}": partial(list_grid, half=half) for half in range(1, NUM_HALVES + 1)},
    "lists": list_pul_lists,
}
