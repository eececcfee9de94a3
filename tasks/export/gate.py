"""The parity gate: an exported file runs real crops in its own runtime, and has to give the features of the model it was made from."""

from collections.abc import Callable
from typing import Any

import numpy as np

from pul_core.arrays import Features, Images
from pul_core.clustering.centring import centre_by_camera
from pul_core.errors import DataError
from pul_core.scoring.evaluation import summarise
from pul_core.scoring.parity import Bounds, Difference, compare_features, exceeded
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from tasks.engine.progress import progress
from tasks.export.crops import Crops

BATCHES = (1, 2, 32)
BLOCK = 256  # images between two progress reports
FeaturesOf = Callable[[Images], Features]


def run_in_batches(features_of: FeaturesOf, images: Images) -> Features:
    """Return the features of images that are run in batches of 1, 2 and 32, one after the other until there are none left."""
    parts, start = [], 0
    while start < len(images):
        for size in BATCHES:
            if start < len(images):
                parts.append(features_of(images[start : start + size]))
                start += size
    return np.concatenate(parts)


def compare_runtimes(reference: FeaturesOf, exported: FeaturesOf, images: Images) -> Difference:
    """Compare the features of crops, which the exported file gets in batches of 1, 2 and 32 images."""
    return compare_features(reference(images), run_in_batches(exported, images))


def rank_1(features_of: Callable[[Crops], Features], labelled: tuple[Crops, Crops], *, centre_cameras: bool) -> float:
    """Return rank-1 of labelled queries and a gallery, as a fraction, under the protocol of Market-1501."""
    with progress("score", sum(len(crops.pids) for crops in labelled)) as progress_bar:
        features = []
        for crops in labelled:
            blocks = []
            for start in range(0, len(crops.pids), BLOCK):
                part = slice(start, start + BLOCK)
                block = Crops(crops.images[part], crops.camids[part], crops.pids[part])
                blocks.append(features_of(block))
                progress_bar.advance(len(block.pids))
            features.append(np.concatenate(blocks))
    if centre_cameras:
        joined = centre_by_camera(np.concatenate(features), np.concatenate([crops.camids for crops in labelled]))
        features = np.split(joined, [len(features[0])])
    sets = [FeatureSet(values, crops.pids, crops.camids) for values, crops in zip(features, labelled, strict=True)]
    return float(summarise(score_protocol(PROTOCOLS["market1501"], *sets).scores).cmc[0])


def check(name: str, difference: Difference, rank_1_loss: float | None, bounds: Bounds) -> dict[str, Any]:
    """Return the differences and their bounds as plain values.

    Raises:
        DataError: a difference exceeds its bound.
    """
    if problems := exceeded(difference, rank_1_loss, bounds):
        raise DataError(f"{name} fails the parity gate, and nothing was written: {'; '.join(problems)}")
    return {**difference._asdict(), "rank_1_loss": rank_1_loss, "bounds": bounds._asdict()}
