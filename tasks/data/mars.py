"""Reader of MARS: crops from video in a folder per person, and the authors' lists that say which tracks are queries.

Images are listed, not opened. Every image of a track is listed, so scores are those of single images, not of tracks as in publications.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from pul_core.errors import DataError
from pul_core.identities import JUNK_PID
from tasks.data.cells import SPLITS
from tasks.data.listing import ListedImage, folder_names, iter_image_paths

MARS_NAME = re.compile(r".*/((\d{4}|00-1)C(\d+)T\d+)F\d+\.[^/.]*")  # track (person, camera, number) and frame
INFO_FILES = ("query_IDX.mat", "tracks_test_info.mat", "test_name.txt")
INFO_FOLDERS = ("info", "MARS-evaluation/info", "MARS-evaluation-master/info")


def list_mars(root: Path) -> Iterator[ListedImage]:
    """List MARS: bbox_train is train; bbox_test is the gallery, with distractors in 0000 and junk in 00-1, except for the query tracks.

    The query tracks are in info/query_IDX.mat, whose numbers are rows of info/tracks_test_info.mat, which point to info/test_name.txt.
    Without these files there is no query.

    Source: Zheng et al. 2016.

    Raises:
        DataError: a file is named differently, or the lists are not MARS's.
    """
    info = next((root / name for name in INFO_FOLDERS if (root / name / INFO_FILES[0]).is_file()), None)
    queries = _query_tracks(info) if info else set()
    notes: tuple[str, ...] = ()
    if info is None:
        notes = (f"{root} has no info/query_IDX.mat, so there is no query: copy the folder info of MARS's evaluation code there to score",)
    for folder in folder_names(root):
        split = SPLITS.get(folder.lower().removeprefix("bbox_")) if folder.lower().startswith("bbox_") else None
        for path in iter_image_paths(root, f"{folder}/") if split else ():
            match = MARS_NAME.fullmatch(path)
            if match is None:
                raise DataError(f"{root / path} is not named like MARS's 0001C1T0001F001.jpg (person, camera, track, frame): remove it")
            pid = JUNK_PID if match[2] == "00-1" else int(match[2])
            is_query = split == "gallery" and match[1] in queries
            yield ListedImage(path, pid, int(match[3]), "query" if is_query else split or "train", notes=notes)
            notes = ()


def _query_tracks(info: Path) -> set[str]:
    """Return the query tracks as they are in file names, such as 0006C1T0001.

    Raises:
        DataError: a list is missing, or not MARS's.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if missing := [name for name in INFO_FILES if not (info / name).is_file()]:
        raise DataError(f"{info / missing[0]} is missing: copy the whole folder info of MARS's evaluation code")
    try:
        rows = loadmat(info / "query_IDX.mat")["query_IDX"].ravel().astype(int) - 1  # MATLAB counts from 1
        tracks = loadmat(info / "tracks_test_info.mat")["track_test_info"]  # first and last line of test_name.txt, person, camera
        lines = {int(line) for line in tracks[rows, 0]}
        with (info / "test_name.txt").open(encoding="utf-8") as names:
            first_images = [name.strip() for number, name in enumerate(names, 1) if number in lines]
        matches = [MARS_NAME.fullmatch(f"/{name}") for name in first_images]
    except (MatReadError, KeyError, IndexError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise DataError(f"{info} does not hold the lists of MARS's evaluation code ({error}): copy the folder again") from error
    if len(matches) < len(lines) or None in matches:
        raise DataError(f"{info / 'test_name.txt'} does not fit tracks_test_info.mat: copy the folder again")
    return {match[1] for match in matches if match}
