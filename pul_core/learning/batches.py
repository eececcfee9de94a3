"""Batch sampling for an epoch: all images shuffled, or P classes with K images each (P x K). A batch is an array of positions."""

import math

import numpy as np
import torch

from pul_core.arrays import Ints
from pul_core.errors import UserError


def num_steps(num_images: int, batch_size: int) -> int:
    """Return the number of steps of an epoch, for both kinds of batches. A last batch of one image is merged into the one before it.

    Example:
        >>> num_steps(10, 4), num_steps(9, 4)
        (3, 2)
    """
    return max(1, math.ceil(num_images / batch_size) - (num_images % batch_size == 1))


def epoch_batches(classes: Ints, *, batch_size: int, images_per_class: int, generator: torch.Generator) -> list[Ints]:
    """Return the batches of an epoch.

    With ``images_per_class`` 0 every image is in exactly one batch. Otherwise each batch holds P = ``batch_size // images_per_class``
    classes (all classes, if there are fewer) with K = ``images_per_class`` images each, grouped by class. Classes, and the images of a
    class, are drawn without replacement; when too few are left for a batch, drawing starts again with all of them. So the classes of a
    batch are distinct, and all classes are drawn about equally often. The images of a batch are distinct, too, unless a class has fewer
    than K images: then each is repeated ``K // size`` times, and some once more. An epoch has as many steps as with shuffled images, so it
    may omit images of large classes.

    Args:
        classes: (m,) class of each image; the numbers may have gaps.
        batch_size: largest number of images per step; a P x K batch has P K images, which may be fewer.
        images_per_class: K, at most ``batch_size``; 0 shuffles all images.
        generator: source of all randomness.

    Returns:
        Positions in ``classes``, one array per step.

    Raises:
        UserError: batches would hold a single image (one class with K = 1).

    Source: P x K batches are from Hermans et al. 2017; drawing classes and images without replacement is ours.

    Example:
        >>> classes = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
        >>> batches = epoch_batches(classes, batch_size=4, images_per_class=2, generator=torch.Generator().manual_seed(0))
        >>> [len(np.unique(classes[batch])) for batch in batches], [len(np.unique(batch)) for batch in batches]
        ([2, 2], [4, 4])
    """
    steps = num_steps(len(classes), batch_size)
    if not images_per_class:
        order = torch.randperm(len(classes), generator=generator).numpy()
        return [order[step * batch_size : None if step == steps - 1 else (step + 1) * batch_size] for step in range(steps)]
    present, sizes = np.unique(classes, return_counts=True)
    p = min(batch_size // images_per_class, len(present))
    if p * images_per_class < 2:
        raise UserError("batches of one class must hold at least 2 images, got images_per_class 1: raise images_per_class")
    drawn_classes = _draw_groups(len(present), p, steps, generator).ravel()  # (steps * p,) indices into `present`
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1])
    slots = np.split(np.argsort(drawn_classes, kind="stable"), np.cumsum(np.bincount(drawn_classes, minlength=len(present)))[:-1])
    batches = np.empty((len(drawn_classes), images_per_class), np.int64)
    for images, class_slots in zip(members, slots, strict=True):
        batches[class_slots] = images[_draw_groups(len(images), images_per_class, len(class_slots), generator)]
    return list(batches.reshape(steps, -1))


def _draw_groups(size: int, group_size: int, num_groups: int, generator: torch.Generator) -> Ints:
    """Draw (num_groups, group_size) numbers below ``size``.

    The groups are consecutive parts of random permutations, without a remainder; a permutation shorter than a group is repeated.
    """
    groups_per_permutation = max(1, size // group_size)
    num_permutations = math.ceil(num_groups / groups_per_permutation)
    permutations = torch.rand(num_permutations, size, generator=generator, dtype=torch.float64).argsort(1)
    positions = torch.arange(groups_per_permutation * group_size) % size
    return permutations[:, positions].reshape(-1, group_size)[:num_groups].numpy()
