"""Readers of the published data sets as their authors hand them out. Nothing is opened but the sets' own lists.

Where a set numbers people from 0, identities are strings, because the integer 0 means a distractor.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from pul_core.errors import DataError
from tasks.data.listing import Listed, image_files, written_path

MARKET_NAME = re.compile(r"(-?\d+)_c(\d+)")
MARKET_SPLITS = {"bounding_box_test": "gallery", "bounding_box_train": "train", "query": "query"}
CUHK01_NAME = re.compile(r"(\d{4})(\d{3})\.png")
CUHK03_NAME = re.compile(r"\d_\d{3}_([12])_\d{2}\.png")
MSMT17_NAME = re.compile(r"(?:.*/)?\d+_\d+_(\d+)_[^/]*")
MSMT17_LISTS = {"list_train.txt": "train", "list_val.txt": "train", "list_query.txt": "query", "list_gallery.txt": "gallery"}
VIPER_NAME = re.compile(r"cam_[ab]/(\d+)_[^/]*")
VIPER_HALVES = 10
AUTHORS_LISTS = {"train.list": "train", "query.list": "query", "test.list": "gallery"}


def market1501(root: Path) -> Iterator[Listed]:
    """List Market-1501, DukeMTMC-reID, or CUHK03-NP in this form: identity and camera begin the name, -1 is junk, 0000 a distractor.

    Source: Zheng et al. 2015; Zheng et al. 2017; Zhong et al. 2017.

    Raises:
        DataError: a name tells no identity and camera.
    """
    for folder, split in MARKET_SPLITS.items():
        for path in image_files(root, f"{folder}/") if (root / folder).is_dir() else ():
            match = MARKET_NAME.match(path.rsplit("/", 1)[1])
            if match is None:
                raise DataError(f"{root / path} is not named like Market-1501's 0002_c1s1_000451_03.jpg: rename it, or give a plain folder")
            yield Listed(path, int(match[1]), int(match[2]), split)


def msmt17(root: Path) -> Iterator[Listed]:
    """List MSMT17, first or second version: four lists, 15 cameras; training is list_train and list_val together (32,621 images).

    Training and test people are numbered from 0 each: identity 7 of the one is ``train/7`` and of the other ``test/7``.

    Source: Wei et al. 2018.

    Raises:
        DataError: a list or a folder is missing, or a line is not `path label`.
    """
    for name, split in MSMT17_LISTS.items():
        side = "train" if split == "train" else "test"
        folder = next((folder for folder in (side, f"mask_{side}_v2") if (root / folder).is_dir()), None)
        if folder is None:
            raise DataError(f"{root} has MSMT17's {name} and no folder {side} or mask_{side}_v2: put the images there")
        for path, label, where in _list_lines(root / name, root / folder):
            match = MSMT17_NAME.fullmatch(path)
            if match is None or label is None:
                raise DataError(f"{where}: MSMT17's lines are like 0000/0000_000_01_0303morning_0015_0.jpg 0, camera third in the name")
            yield Listed(f"{folder}/{path}", f"{side}/{label}", int(match[1]), split)


def cuhk01(root: Path) -> Iterator[Listed]:
    """List CUHK01: campus/PPPPIII.png, images 1 and 2 by camera 1, 3 and 4 by camera 2.

    The set's authors publish no split. Ours is fixed: the first half of the identities in order (485 of 971) is train, of the others
    camera 1 asks and camera 2 answers.

    Source: Li, Zhao, Wang 2012; the split is ours.

    Raises:
        DataError: a name is another.
    """
    told = []
    for path in image_files(root, "campus/"):
        match = CUHK01_NAME.fullmatch(path.rsplit("/", 1)[1])
        if match is None or not 1 <= int(match[2]) <= 4:
            raise DataError(f"{root / path} is not named like CUHK01's 0001001.png, person and image 001 to 004: take it out")
        told.append((path, int(match[1]), (int(match[2]) + 1) // 2))
    people = sorted({pid for _, pid, _ in told})
    train = set(people[: len(people) // 2])
    for path, pid, camid in told:
        yield Listed(path, pid, camid, "train" if pid in train else ("query", "gallery")[camid - 1])


def viper(root: Path, half: int | None = None) -> Iterator[Listed]:
    """List VIPeR: one image a person in cam_a, which asks, and one in cam_b, which answers.

    Args:
        root: has cam_a and cam_b.
        half: None lists everybody for scoring; 1 to `VIPER_HALVES` makes a random half of the people train, the same one every time.

    Source: Gray, Brennan, Tao 2007; the halves are ours (NumPy's PCG64 seeded with the half's number).

    Raises:
        DataError: a name is another.
    """
    told = []
    for camid, folder in enumerate(("cam_a", "cam_b"), 1):
        for path in image_files(root, f"{folder}/"):
            match = VIPER_NAME.fullmatch(path)
            if match is None:
                raise DataError(f"{root / path} is not named like VIPeR's cam_a/000_45.bmp, person and angle: take it out")
            told.append((path, match[1], camid))
    people = sorted({pid for _, pid, _ in told})
    order = np.random.default_rng(half).permutation(len(people))
    train = {people[position] for position in order[: len(people) // 2]} if half else set()
    for path, pid, camid in told:
        yield Listed(path, pid, camid, "train" if pid in train else ("query", "gallery")[camid - 1])


def cuhk03_np(root: Path, boxes: str) -> Iterator[Listed]:
    """List CUHK03, new protocol: PNG files extracted from cuhk-03.mat, split by the protocol's configuration file.

    Args:
        root: has images_detected or images_labeled, and cuhk03_new_protocol_config_detected.mat or ..._labeled.mat.
        boxes: detected or labeled.

    Source: Zhong et al. 2017.

    Raises:
        DataError: a file is missing or is another.
    """
    config = root / f"cuhk03_new_protocol_config_{boxes}.mat"
    if not config.is_file():
        raise DataError(
            f"{config} is missing: put the new protocol's file there, or give one of the manifests `pul data extract` makes of cuhk-03.mat"
        )
    for name, split, pid in new_protocol(config):
        path = written_path(f"images_{boxes}/{name}", str(config), root)
        match = CUHK03_NAME.fullmatch(name)
        if match is None:
            raise DataError(f"{config}: {name!r} is not named like 1_001_1_01.png, with the camera third")
        yield Listed(path, pid, int(match[1]), split)


def new_protocol(config: Path) -> Iterator[tuple[str, str, int]]:
    """Yield name, split and identity of the images in CUHK03's new protocol, by split, in the file's order.

    Raises:
        DataError: the file is no such configuration.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        told = loadmat(config)
        names = [str(name.item()) for name in told["filelist"].ravel()]
        labels = told["labels"].ravel()
        for split in ("train", "query", "gallery"):
            for position in told[f"{split}_idx"].ravel():
                yield names[int(position) - 1], split, int(labels[int(position) - 1])
    except (MatReadError, KeyError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise DataError(f"{config} is not the file of CUHK03's new protocol ({error}): it comes with Zhong et al.'s re-ranking") from error


def authors_lists(root: Path) -> Iterator[Listed]:
    """List the files that PUL's authors publish: train.list (`name label`, -1 unlabelled), query.list and test.list (names).

    Args:
        root: the folder of these three, or one list's file, which is then all to learn from (25train.list). Images lie beside it, in
            bounding_box_train, query and bounding_box_test if there are such folders. Identity and camera come from names in Market's
            form; of other names the label is the identity, and there is no camera.

    Source: Fan et al. 2018, the released code.

    Raises:
        DataError: a line is wrong.
    """
    lists = {root.name: "train"} if root.is_file() else AUTHORS_LISTS
    folder = root.parent if root.is_file() else root
    sides = {split: side for side, split in MARKET_SPLITS.items()}
    for name, split in lists.items():
        if not (folder / name).is_file():
            continue
        side = f"{sides[split]}/" if (folder / sides[split]).is_dir() else ""
        for path, label, _ in _list_lines(folder / name, folder / side):
            match = MARKET_NAME.match(path.rsplit("/", 1)[-1])
            unknown = label == "-1" or (label is None and match is None)
            pid = None if unknown else int(match[1]) if match else label
            yield Listed(side + path, pid, int(match[2]) if match else None, split)


def _list_lines(file: Path, folder: Path) -> Iterator[tuple[str, str | None, str]]:
    """Yield path, label (None where there is none) and place of each line `path` or `path label`; a label is a whole number."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text, where = line.strip(), f"{file}, line {number}"
                match = re.fullmatch(r"(.*?)(?:\s+(-?\d+))?", text)
                if text and match:
                    yield written_path(match[1], where, folder), match[2], where
    except FileNotFoundError as error:
        raise DataError(f"{file} is missing: the set is not whole") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no list of images: it is no text in UTF-8") from error


READERS: dict[str, Callable[[Path], Iterator[Listed]]] = {
    "market1501": market1501,
    "msmt17": msmt17,
    "cuhk01": cuhk01,
    "cuhk03-np-detected": partial(cuhk03_np, boxes="detected"),
    "cuhk03-np-labelled": partial(cuhk03_np, boxes="labeled"),
    "viper": viper,
    **{f"viper-{half}": partial(viper, half=half) for half in range(1, VIPER_HALVES + 1)},
    "lists": authors_lists,
}
