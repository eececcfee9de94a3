"""Time and memory of indexing: 100,000 small JPEGs cold and again, and a million names of them. `.venv/bin/python benchmarks/index.py`.

Each measurement runs in a process of its own, so that its peak memory is its own. Everything is written below a temporary folder (the
files take 0.5 GB) and deleted.
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

FILES, NAMES, PER_FOLDER = 100_000, 1_000_000, 1_000


def write_files(root: Path, count: int) -> None:
    """Write JPEGs of 64 x 32 pixels, each of other bytes, a thousand a folder."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(100):
        picture = io.BytesIO()
        blocks = np.kron(rng.integers(0, 255, (16, 8, 3)), np.ones((4, 4, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(picture, "JPEG", quality=90)
        pictures.append(picture.getvalue())
    for number in range(count):
        folder = root / f"{number // PER_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:07d}.jpg").write_bytes(pictures[number % 100] + number.to_bytes(8, "big"))


def write_names(root: Path, files: Path, count: int) -> None:
    """Give the files more names: hard links, a thousand a folder."""
    found = sorted(files.rglob("*.jpg"))
    for number in range(count):
        folder = root / f"{number // PER_FOLDER:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(found[number % len(found)], folder / f"{number:07d}.jpg")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB


def measure(root: str) -> dict[str, float]:
    """Index and check a folder in this process."""
    from tasks.data.check import check_set
    from tasks.index import index

    measured = {"MB imports": peak()}
    started = time.monotonic()
    images = index.fn(root, "benchmark")
    measured |= {"s index": time.monotonic() - started, "MB index": peak()}
    started = time.monotonic()
    check_set(images)
    return measured | {"s check": time.monotonic() - started, "MB check": peak()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", metavar="DIR", help="index and check this folder, in this process")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--names", type=int, default=NAMES)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files, names = Path(folder, "files"), Path(folder, "names")
        write_files(files, options.files)
        write_names(names, files, options.names)
        time.sleep(3)  # files younger than two seconds are not remembered
        for what, root in (("cold", files), ("again", files), ("cold", names), ("again", names)):
            environment = os.environ | {"PUL_HOME": str(Path(folder, "home"))}
            command = [sys.executable, __file__, "--measure", str(root)]
            measured = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
            count = options.files if root == files else options.names
            print(f"{count:>9,} {what:<6}", ", ".join(f"{name} {value:,.1f}" for name, value in measured.items()), flush=True)


if __name__ == "__main__":
    main()
