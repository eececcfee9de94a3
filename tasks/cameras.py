"""Step *group_by_style*: groups of images that stand for the cameras of a target whose cameras are unknown."""

from typing import Any

import numpy as np
import pyarrow as pa

from pul_core.identities import NO_CAMERA
from pul_core.learning import style
from pul_core.settings import Statistics
from tasks.engine.compute import prepare
from tasks.engine.progress import progress, step_logger
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, read_table, write_table
from tasks.store.model_file import read_model
from tasks.store.readers import camids, open_pixels
from tasks.store.references import Compute, ImageSet, Pixels


def cameras_of(model: Artifact, pixels: Pixels, images: ImageSet, *, settings: Statistics, seed: int, compute: Compute) -> Artifact:
    """Return a table with the column ``camid``, one row per image of the target: images.parquet, or that of its style groups.

    Args:
        model: the original model.
        pixels: training images of the target.
        images: the target.
        settings: whether style groups stand for cameras, and how many.
        seed: of the grouping.
        compute: device, threads and batch size.
    """
    rows, _ = open_pixels(pixels)
    num_known = np.count_nonzero(camids(read_table(images.images, ["camid"]))[rows] != NO_CAMERA)
    num_groups = settings.count_style_groups(len(rows), int(num_known))
    if not num_groups and not settings.ignore_cameras:
        return images.images
    return group_by_style(model, pixels, images.images, num_groups=num_groups, seed=seed, compute=compute)


@step("group-by-style")
def group_by_style(model: Artifact, pixels: Pixels, images: Artifact, *, num_groups: int, seed: int, compute: Compute) -> Artifact:
    """Divide the training images into groups of similar style; see `pul_core.learning.style`. All other images have no group.

    Args:
        model: the original model; it is not changed.
        pixels: training images of the target.
        images: the target's images.parquet.
        num_groups: number of groups; 0: no image has one.
        seed: of the grouping.
        compute: device, threads and batch size.
    """
    rows, decoded = open_pixels(pixels)
    groups = np.full(read_table(images, ["camid"]).num_rows, NO_CAMERA)
    if num_groups:
        prepare(compute)
        backbone, _ = read_model(model)
        options: dict[str, Any] = {"batch_size": compute.batch_size, "device": compute.device}
        with progress("group by style", len(rows)) as progress_bar:
            values = style.extract_style(backbone, decoded, **options, on_batch=progress_bar.advance)
        groups[rows] = style.group_by_style(values, num_groups, seed=seed, device=compute.device)
        found, sizes = np.unique(groups[rows], return_counts=True)
        if found[-1] == NO_CAMERA:
            step_logger().warning("all images have the same style, so there are no style groups: are they copies of one image?")
        else:
            step_logger().info("%d style groups of %d to %d images stand for cameras", len(found), sizes.min(), sizes.max())
    return write_table("cameras", pa.table({"camid": pa.array(groups, pa.int64(), mask=groups == NO_CAMERA)}))
