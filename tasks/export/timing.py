"""Latency and throughput of a model by batch size, in this process and on this machine."""

import time
from collections.abc import Callable

import numpy as np

from pul_core.arrays import Features, Images
from tasks.export.gate import BATCHES

SECONDS = 1.0  # per batch size
MIN_RUNS, MAX_RUNS = 3, 200


def time_batches(features_of: Callable[[Images], Features], images: Images) -> list[dict[str, float]]:
    """Return batch size, median latency in milliseconds and images per second for each batch size.

    Args:
        features_of: the model.
        images: (n, h, w, 3) uint8, repeated if they are fewer than a batch.
    """
    rows = []
    for size in BATCHES:
        batch = images[np.resize(np.arange(len(images)), size)]
        features_of(batch)  # the first run of a batch size allocates memory
        latencies: list[float] = []
        while len(latencies) < MIN_RUNS or (sum(latencies) < SECONDS and len(latencies) < MAX_RUNS):
            started = time.perf_counter()
            features_of(batch)
            latencies.append(time.perf_counter() - started)
        latency = float(np.median(latencies))
        rows.append({"batch": size, "latency_ms": 1000 * latency, "images_per_second": size / latency})
    return rows
