"""Time and peak memory of indexing 100,000 small JPEG files and a million hard links to them, without and with a cache of the scan.

Usage: .venv/bin/python benchmarks/index.py. Each measurement runs in a separate process, because the peak memory is measured per process.
All files (0.5 GB) are written to a temporary folder and deleted at the end.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

FILES, LINKS, FILES_PER_FOLDER = 100_000, 1_000_000, 1_000


def write_files(root: Path, count: int) -> None:
    """Write JPEG files of 64 x 32 pixels with distinct bytes, a thousand per folder."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(100):
        buffer = io.BytesIO()
        blocks = np.kron(rng.integers(0, 255, (16, 8, 3)), np.ones((4, 4, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(buffer, "JPEG", quality=90)
        jpegs.append(buffer.getvalue())
    for number in range(count):
        folder = root / f"{number // FILES_PER_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}.jpg").write_bytes(jpegs[number % 100] + number.to_bytes(8, "big"))


def write_links(root: Path, files: Path, count: int) -> None:
    """Create hard links to the files, a thousand per folder."""
    targets = sorted(files.rglob("*.jpg"))
    for number in range(count):
        folder = root / f"{number // FILES_PER_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(targets[number % len(targets)], folder / f"{number:07d}.jpg")


def peak_memory() -> float:
    """Return the peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(root: str) -> dict[str, float]:
    """Index and check a folder in this process; return seconds and MB by name."""
    from tasks.data.check import check_set
    from tasks.index import index

    measured = {"MB imports": peak_memory()}
    started = time.monotonic()
    images = index.fn(root, "benchmark")
    measured |= {"s index": time.monotonic() - started, "MB index": peak_memory()}
    started = time.monotonic()
    check_set(images)
    return measured | {"s check": time.monotonic() - started, "MB check": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", metavar="DIR", help="index and check this folder, in this process")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--names", type=int, default=LINKS, help="number of hard links")
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files, links = Path(folder, "files"), Path(folder, "links")
        write_files(files, options.files)
        write_links(links, files, options.names)
        time.sleep(3)  # files modified in the last two seconds are not cached
        for scan, root in (("cold", files), ("again", files), ("cold", links), ("again", links)):
            environment = os.environ | {"PUL_HOME": str(Path(folder, "home"))}
            command = [sys.executable, __file__, "--measure", str(root)]
            measured = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            count = options.files if root == files else options.names
            print(f"{count:>9,} {scan:<6}", ", ".join(f"{name} {value:,.1f}" for name, value in measured.items()), flush=True)


if __name__ == "__main__":
    main()
