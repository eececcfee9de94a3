"""Wall time and memory of the evaluator against the bare product of the features it has to make, in one process.

`python benchmarks/evaluation.py` prints the table of Market-1501's size; `--gallery 500000` streams a gallery from a file; `--peer` adds
torchreid's evaluator (`make peers`).
"""

import argparse
import resource
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from pul_core.scoring.protocols import PROTOCOLS, Side, evaluate
from pul_core.scoring.reranking import Reranking

PEERS = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
PEER = """
import sys, time, numpy as np, warnings
warnings.filterwarnings("ignore")
import torch
from torchreid.reid.metrics import compute_distance_matrix
from torchreid.reid.metrics.rank import evaluate_rank
torch.set_num_threads(int(sys.argv[2]))
given = np.load(sys.argv[1])
started = time.perf_counter()
distances = compute_distance_matrix(torch.from_numpy(given["query"]), torch.from_numpy(given["gallery"]), "cosine").numpy()
evaluate_rank(distances, given["query_pids"], given["gallery_pids"], given["query_camids"], given["gallery_camids"])
print(time.perf_counter() - started)
"""


def draw(path: Path, queries: int, gallery: int, d: int) -> tuple[Side, Side]:
    """People on six cameras, some 15 right answers a query; the gallery's features lie in a file."""
    rng = np.random.default_rng(0)
    people = gallery // 21
    centres = rng.normal(size=(people + 1, d)).astype(np.float32)
    pids = np.where(rng.random(gallery) < 0.18, 0, rng.integers(1, people + 1, gallery))  # as many distractors as in Market-1501
    features = np.lib.format.open_memmap(path, "w+", np.float32, (gallery, d))
    for start in range(0, gallery, 4096):
        part = slice(start, start + 4096)
        features[part] = centres[pids[part]] + 3 * rng.standard_normal((len(pids[part]), d), np.float32)
    features.flush()
    asked = rng.integers(1, people + 1, queries)
    query = Side(centres[asked] + 3 * rng.standard_normal((queries, d), np.float32), asked, rng.integers(1, 7, queries))
    return query, Side(np.load(path, mmap_mode="r"), pids, rng.integers(1, 7, gallery))


def product(query: Side, gallery: Side) -> None:
    """Make every distance, keep none."""
    asked = torch.from_numpy(query.features)
    for start in range(0, len(gallery.pids), 16384):
        asked @ torch.from_numpy(np.array(gallery.features[start : start + 16384])).T


def anonymous_bytes() -> int:
    """Return the process's memory that is not a mapped file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return seconds and the additional memory at its highest, in MB, looked at every 5 ms."""
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, max(0, peak - before) / 1e6


def peer_seconds(query: Side, gallery: Side, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        sides = {"query": query, "gallery": gallery}
        features = {role: side.features for role, side in sides.items()}
        pids = {f"{role}_pids": side.pids for role, side in sides.items()}
        np.savez(Path(folder, "given.npz"), **features, **pids, **{f"{role}_camids": side.camids for role, side in sides.items()})
        command = [str(PEERS), "-c", PEER, str(Path(folder, "given.npz")), str(threads)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--queries", type=int, default=3368)
    options.add_argument("--gallery", type=int, default=15913)
    options.add_argument("--features", type=int, default=2048)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rerank", action="store_true")
    options.add_argument("--peer", action="store_true")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        query, gallery = draw(Path(folder, "gallery.npy"), given.queries, given.gallery, given.features)
        print(f"{given.queries:,} x {given.gallery:,}, d = {given.features}, {given.threads} threads, median of {given.rounds} in turn")
        cases: dict[str, Callable[[], object]] = {
            "bare product": lambda: product(query, gallery),
            "market1501": lambda: evaluate(PROTOCOLS["market1501"], query, gallery),
            "market1501, expected ties": lambda: evaluate(PROTOCOLS["market1501"], query, gallery, ties="expected"),
        }
        if given.rerank:
            cases["market1501, re-ranked"] = lambda: evaluate(PROTOCOLS["market1501"], query, gallery, reranking=Reranking())
        found = [{name: measure(run) for name, run in cases.items()} for _ in range(given.rounds)]
        print(f"{'':28}{'seconds':>9}{'products':>10}{'MB more':>9}")
        for name in cases:
            seconds, memory = (statistics.median(turn[name][i] for turn in found) for i in (0, 1))
            ratio = statistics.median(turn[name][0] / turn["bare product"][0] for turn in found)
            print(f"{name:28}{seconds:9.2f}{ratio:10.2f}{memory:9.0f}")
        if given.peer:
            seconds = peer_seconds(query, gallery, given.threads)
            bare = statistics.median(turn["bare product"][0] for turn in found)
            print(f"{'torchreid, pure Python':28}{seconds:9.2f}{seconds / bare:10.2f}")
        print(f"highest memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:,.0f} MB, files it maps included")


if __name__ == "__main__":
    main()
