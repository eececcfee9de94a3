"""The recipes: a value for every setting that the user does not set. docs/method.md gives their sources."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pul_core.clustering.possible_neighbours import possible_neighbours
from pul_core.settings import (
    Augmentation,
    Clustering,
    Dbscan,
    KMeans,
    Model,
    Optimisation,
    Recipe,
    Selection,
    Statistics,
    Stopping,
    Training,
)

RecipeName = Literal["paper", "modern", "released-code"]
RecipeChoice = Literal["auto", "paper", "modern", "released-code"]

# The trainer of `paper` is ours: the usual re-ID baseline (Adam, 3.5e-4) without metric learning, chosen on synthetic seeds (10 to 14)
# and held-out source people (docs/log.md). Fine-tuning is shorter and slower: k-means clusters often hold one camera's images of a person,
# and learning poor clusters at the source's rate leaves a model worse than direct transfer (docs/adr/0011).
PAPER = Recipe(
    fine_tuning=Training(
        epochs=4,
        optimisation=Optimisation(backbone_learning_rate=0.0002, classifier_learning_rate=0.0002),
        augmentation=Augmentation(colour_share=0.08),
    ),
)
# `modern` uses cameras, or groups of similar style if they are unknown, and clusters by density. It rejects the images in no cluster
# instead of those far from a centre, and goes on from the last model (docs/adr/0020).
MODERN = replace(
    PAPER,
    model=Model(centre_cameras=True, flip=True, start_from="last"),
    statistics=Statistics(by_camera=True, style_groups=8, whitening=0.75),
    clustering=Clustering(algorithm="dbscan", whitening=0),
    selection=Selection(min_similarity=-1),
    dbscan=Dbscan(max_distance=0.55),
    fine_tuning=Training(epochs=4),
    stopping=Stopping(max_iterations=6),
)
_AUTHORS_TRAINING = Training(
    epochs=40,
    batch_size=16,
    batch_norm=False,
    dropout=0.5,
    label_smoothing=0,
    optimisation=Optimisation(
        optimiser="sgd",
        backbone_learning_rate=0.001,
        classifier_learning_rate=0.001,
        momentum=0.9,
        nesterov=False,
        weight_decay=0,
        schedule="constant",
    ),
    augmentation=Augmentation(flip_probability=0, crop_share=0, erase_probability=0, rotation_degrees=20, shift_share=0.2),
)
RELEASED_CODE = Recipe(
    model=Model(height=224, width=224),
    pretraining=_AUTHORS_TRAINING,
    clustering=Clustering(whitening=0),
    kmeans=KMeans(normalise=False, num_restarts=10, max_passes=300, centre_from="all"),
    selection=Selection(min_similarity=0.85, close_to="any_centre", keep_empty_classes=True),
    fine_tuning=replace(_AUTHORS_TRAINING, epochs=20),
    stopping=Stopping(max_iterations=25, stop_when_stable=False, stability_tolerance=0, stability_patience=1),
)
RECIPES: dict[RecipeName, Recipe] = {"paper": PAPER, "modern": MODERN, "released-code": RELEASED_CODE}


def choose_recipe(
    num_images: int, camera_sizes: Sequence[int], dbscan: Dbscan = MODERN.dbscan, statistics: Statistics = MODERN.statistics
) -> tuple[RecipeName, str]:
    """Return what the choice ``auto`` stands for, and the reason in words.

    It is `modern` if there are cameras, i.e. two known ones or style groups in their place, and enough images to cluster them by density;
    otherwise `paper`. What `modern` does better than `paper` depends mostly on cameras (docs/results.md).

    Args:
        num_images: number of the target's training images.
        camera_sizes: number of them on each known camera.
        dbscan: the settings of `modern`, with the user's changes.
        statistics: those of `modern`, with the user's changes.

    Example:
        >>> choose_recipe(40, (40,)), choose_recipe(100, (60, 40)), choose_recipe(500, ())
        (('paper', '1 known camera'), ('modern', '2 known cameras'), ('modern', '8 style groups stand for cameras'))
        >>> choose_recipe(12, (8, 4))[0], choose_recipe(12, (8, 4), Dbscan(num_neighbours=4))[0]
        ('paper', 'modern')
    """
    sizes = statistics.camera_sizes(num_images, camera_sizes)
    cameras = f"{len(sizes)} known camera{'' if len(sizes) == 1 else 's'}"
    if statistics.count_style_groups(num_images, sum(camera_sizes)):
        cameras = f"{len(sizes)} style groups stand for cameras"
    elif sum(sizes) < num_images / 2:
        return "paper", "most cameras are unknown, and there are no style groups"
    elif len(sizes) < 2:
        return "paper", cameras
    possible = possible_neighbours(num_images, sizes, dbscan)
    if dbscan.num_neighbours >= possible:
        return "paper", f"{cameras}, but an image has at most {possible} possible neighbours, too few for modern's {dbscan.num_neighbours}"
    return "modern", cameras
