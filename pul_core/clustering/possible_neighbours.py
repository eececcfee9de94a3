"""How many neighbours DBSCAN can find in a set of this size: with too few, all images end up in one cluster."""

from collections.abc import Sequence

from pul_core.settings import Dbscan


def possible_neighbours(num_images: int, camera_sizes: Sequence[int], settings: Dbscan) -> int:
    """Return how many neighbours an image can have at most: those on other cameras if ``camera_aware``, otherwise all other images.

    Args:
        num_images: number of images.
        camera_sizes: number of images on each known camera; images of unknown cameras are on none of them.
        settings: of DBSCAN.

    Example:
        >>> possible_neighbours(12, (8, 4), Dbscan()), possible_neighbours(12, (8, 4), Dbscan(camera_aware=False))
        (8, 11)
    """
    if not settings.camera_aware or len(camera_sizes) < 2:  # with one camera, cameras are not used
        return num_images - 1
    num_unknown = num_images - sum(camera_sizes)
    return num_images - (1 if num_unknown else min(camera_sizes))
