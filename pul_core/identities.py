"""Reserved identity and camera numbers, as in Market-1501, and the one rule for what they mean in each split."""

import numpy as np
import numpy.typing as npt

DISTRACTOR_PID = 0  # a gallery image that is scored and never a correct match
JUNK_PID = -1  # a gallery image that is ignored in scoring
NO_CAMERA = -1  # the camera is unknown: it differs from every camera, also from another unknown one
FIRST_GROUP = -2  # style groups that stand for cameras have the numbers -2, -3, ...


def is_same_camera(camids: npt.NDArray[np.int64], other_camids: npt.NDArray[np.int64] | np.int64) -> npt.NDArray[np.bool_]:
    """Return whether two images are known to be from the same camera; never true for an unknown camera (`NO_CAMERA`).

    Args:
        camids: cameras of any shape.
        other_camids: cameras to compare with; the shapes are broadcast.

    Example:
        >>> is_same_camera(np.array([1, 1, -1]), np.array([1, 2, -1])).tolist()
        [True, False, False]
    """
    same: npt.NDArray[np.bool_] = (camids == other_camids) & (camids != NO_CAMERA)
    return same


def separate_unknown_cameras(camids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give each image of an unknown camera (`NO_CAMERA`) a camera number of its own, so that equal numbers mean the same camera.

    Args:
        camids: (n,) camera of each image.

    Returns:
        (n,) cameras without `NO_CAMERA`; known ones keep their number.

    Example:
        >>> separate_unknown_cameras(np.array([3, -1, 1, -1])).tolist()
        [3, 5, 1, 7]
    """
    return np.where(camids == NO_CAMERA, camids.max(initial=0) + 1 + np.arange(len(camids)), camids)


def identity_in_split(pid: int | str | None, split: str) -> int | str | None:
    """Return what an identity number means in a split.

    -1 is junk in a gallery and an unknown identity elsewhere. 0 is a distractor in a gallery and a person elsewhere, who is named "0". If a
    query has identity 0, the data set is numbered from 0, and 0 is that person in the gallery, too; only the index can see that.

    Args:
        pid: an integer, a name, or None if it is not stated.
        split: train, query or gallery.

    Returns:
        A person's number or name; None if the identity is unknown; `DISTRACTOR_PID` or `JUNK_PID` only in a gallery.

    Example:
        >>> [identity_in_split(pid, "train") for pid in (7, "Ana", 0, -1)], [identity_in_split(pid, "gallery") for pid in (7, 0, -1)]
        ([7, 'Ana', '0', None], [7, 0, -1])
    """
    if split == "gallery" or pid not in (DISTRACTOR_PID, JUNK_PID):
        return pid
    return None if pid == JUNK_PID else str(pid)
