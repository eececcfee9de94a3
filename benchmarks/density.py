"""Time and memory of DBSCAN on the camera-aware Jaccard distance: `.venv/bin/python benchmarks/density.py`, 100,000 images.

Memory must grow with images x neighbours. `--images` takes several numbers; each is measured in a process of its own.
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

PER_PERSON, CAMERAS = 16, 6


def draw(path: Path, n: int, d: int) -> np.ndarray:
    """Features of people on six cameras, in a file."""
    rng = np.random.default_rng(0)
    centres, cameras = rng.standard_normal((n // PER_PERSON + 1, d), np.float32), rng.standard_normal((CAMERAS, d), np.float32)
    features = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
    camera = np.arange(n) % CAMERAS
    for start in range(0, n, 4096):
        rows = np.arange(start, min(start + 4096, n))
        features[rows] = centres[rows // PER_PERSON] + 0.4 * cameras[camera[rows]] + rng.standard_normal((len(rows), d), np.float32)
    features.flush()
    return camera


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, nargs="+", default=[25_000, 100_000])
    options.add_argument("--features", type=int, default=512)
    options.add_argument("--threads", type=int, default=2)
    given = options.parse_args()
    if len(given.images) > 1:
        for n in given.images:
            command = [sys.executable, __file__, "--images", str(n), "--features", str(given.features), "--threads", str(given.threads)]
            subprocess.run(command, check=True)
        return
    configure()
    from flows.recipes import RECIPES
    from pul_core.clustering.density import cluster_by_density
    from tasks.cluster import DBSCAN

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        path, n = Path(folder, "features.npy"), given.images[0]
        cameras = draw(path, n, given.features)
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settings = RECIPES["modern"]["clustering"].model_dump()
        found = cluster_by_density(np.load(path, mmap_mode="r"), cameras, **{name: settings[name] for name in DBSCAN})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clustered = float((found.cluster >= 0).mean())
    print(
        f"{n:>9,} images, d = {given.features}: {time.perf_counter() - started:,.0f} s, highest memory {peak / 1e6:.2f} GB "
        f"({before / 1e6:.2f} before), {len(found.centre):,} clusters with {clustered:.0%} of the images",
        flush=True,
    )


if __name__ == "__main__":
    main()
