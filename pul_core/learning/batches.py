"""Which images stand together in the steps of an epoch: all of them shuffled, or so many images of each of so many classes (P x K).

It knows positions and classes; pixels and models are `training`'s.
"""

import math

import numpy as np
import numpy.typing as npt
import torch

from pul_core.errors import UserError


def num_steps(num_images: int, batch_size: int) -> int:
    """Return how many steps an epoch has, whatever its batches are made of; a last batch of one image joins the one before.

    Example:
        >>> num_steps(10, 4), num_steps(9, 4)
        (3, 2)
    """
    return max(1, math.ceil(num_images / batch_size) - (num_images % batch_size == 1))


def epoch_batches(
    classes: npt.NDArray[np.int64], *, batch_size: int, images_per_class: int, generator: torch.Generator
) -> list[npt.NDArray[np.int64]]:
    """Deal the images of an epoch out to its steps.

    With ``images_per_class`` 0 every image stands in one batch. Otherwise each batch holds P = ``batch_size // images_per_class`` classes
    (all of them, if there are fewer) with K = ``images_per_class`` images each, class by class. Classes, and the images of a class, are
    dealt like cards: from a shuffled deck, which is shuffled anew when it has less than a hand left. So no class stands twice in a batch,
    all come up about equally often, and no image stands twice in a batch unless its class has fewer than K: then each of them is shown
    ``K // size`` times, some once more. An epoch has as many steps as a shuffled one; large classes' images may be left out of it.

    Args:
        classes: (m,) class of each image; numbers may have gaps.
        batch_size: images a step at most; of P x K batches P K, which may be less.
        images_per_class: K, at most ``batch_size``; 0 shuffles.
        generator: of everything drawn here.

    Returns:
        Positions in ``classes``, an array a step.

    Raises:
        UserError: K below 0 or above ``batch_size``, or batches of a single image (one class with K = 1).

    Source: P x K batches are Hermans et al. 2017; that none comes up before the others were is ours.

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
    if not 0 < images_per_class <= batch_size:
        raise UserError(f"images_per_class must be between 0 and batch_size ({batch_size}), not {images_per_class}")
    present, sizes = np.unique(classes, return_counts=True)
    p = min(batch_size // images_per_class, len(present))
    if p * images_per_class < 2:
        raise UserError("one class with one image is no batch to learn from: raise images_per_class")
    drawn = _deal(len(present), p, steps, generator).ravel()  # (steps * p,) which class, by its place in `present`
    members = np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1])
    places = np.split(np.argsort(drawn, kind="stable"), np.cumsum(np.bincount(drawn, minlength=len(present)))[:-1])
    batches = np.empty((len(drawn), images_per_class), np.int64)
    for images, wanted in zip(members, places, strict=True):
        batches[wanted] = images[_deal(len(images), images_per_class, len(wanted), generator)]
    return list(batches.reshape(steps, -1))


def _deal(size: int, hand: int, count: int, generator: torch.Generator) -> npt.NDArray[np.int64]:
    """Deal (count, hand) numbers below ``size`` from shuffled decks; a deck smaller than a hand goes round."""
    a_deck = max(1, size // hand)
    decks = torch.rand(math.ceil(count / a_deck), size, generator=generator, dtype=torch.float64).argsort(1)
    dealt: npt.NDArray[np.int64] = decks[:, torch.arange(a_deck * hand) % size].reshape(-1, hand)[:count].numpy()
    return dealt
