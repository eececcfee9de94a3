"""Time and peak memory of DBSCAN on the camera-aware Jaccard distance, for 25,000 and 100,000 images.

Usage: .venv/bin/python benchmarks/density.py. The memory should grow with images x neighbours. `--images` accepts several numbers; each
is measured in a separate process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from deployments.environment import configure

IMAGES_PER_IDENTITY, CAMERAS = 16, 6


def write_features(path: Path, n: int, d: int) -> np.ndarray:
    """Write random features (n, d) of people on six cameras to a file, and return the camera indices (n,)."""
    rng = np.random.default_rng(0)
    identity_centres = rng.standard_normal((n // IMAGES_PER_IDENTITY + 1, d), np.float32)
    camera_offsets = rng.standard_normal((CAMERAS, d), np.float32)
    features = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    camids = np.arange(n) % CAMERAS
    for start in range(0, n, 4096):
        rows = np.arange(start, min(start + 4096, n))
        noise = rng.standard_normal((len(rows), d), np.float32)
        features[rows] = identity_centres[rows // IMAGES_PER_IDENTITY] + 0.4 * camera_offsets[camids[rows]] + noise
    features.flush()
    return camids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if len(options.images) > 1:
        for n in options.images:
            command = [sys.executable, __file__, "--images", str(n), "--features", str(options.features), "--threads", str(options.threads)]
            subprocess.run(command, check=True)
        return
    configure()
    from pul_core.clustering.density import cluster_by_density
    from pul_core.recipes import MODERN

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        path, n = Path(folder, "features.npy"), options.images[0]
        camids = write_features(path, n, options.features)
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        clusters = cluster_by_density(np.load(path, mmap_mode="r"), camids, MODERN.dbscan)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clustered = float((clusters.cluster >= 0).mean())
    print(
        f"{n:>9,} images, d = {options.features}: {time.perf_counter() - started:,.0f} s, peak memory {peak / 1e6:.2f} GB "
        f"({before / 1e6:.2f} before), {len(clusters.centre):,} clusters with {clustered:.0%} of the images",
        flush=True,
    )


if __name__ == "__main__":
    main()
