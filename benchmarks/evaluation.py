"""Benchmark the evaluator's wall time and memory against a plain matrix multiplication of the same features, in one process.

`python benchmarks/evaluation.py` prints the table at the size of Market-1501; `--gallery 500000` reads a larger gallery from a file;
`--peer` adds torchreid's evaluator (requires `make peers`).
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

from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.scoring.reranking import Reranking

PEER_PYTHON = Path(__file__).parent.parent / ".venv-peers" / "bin" / "python"
PEER_PROGRAM = """
import sys, time, numpy as np, warnings
warnings.filterwarnings("ignore")
import torch
from torchreid.reid.metrics import compute_distance_matrix
from torchreid.reid.metrics.rank import evaluate_rank
torch.set_num_threads(int(sys.argv[2]))
data = np.load(sys.argv[1])
started = time.perf_counter()
distances = compute_distance_matrix(torch.from_numpy(data["query"]), torch.from_numpy(data["gallery"]), "cosine").numpy()
evaluate_rank(distances, data["query_pids"], data["gallery_pids"], data["query_camids"], data["gallery_camids"])
print(time.perf_counter() - started)
"""


def draw_sets(path: Path, queries: int, gallery: int, d: int) -> tuple[FeatureSet, FeatureSet]:
    """Draw people on six cameras, with about 15 correct matches per query; the gallery's features are memory-mapped from a file."""
    rng = np.random.default_rng(0)
    people = gallery // 21
    centres = rng.normal(size=(people + 1, d)).astype(np.float32)
    pids = np.where(rng.random(gallery) < 0.18, 0, rng.integers(1, people + 1, gallery))  # as many distractors as in Market-1501
    features = np.lib.format.open_memmap(path, "w+", np.float32, (gallery, d))
    for start in range(0, gallery, 4096):
        block = slice(start, start + 4096)
        features[block] = centres[pids[block]] + 3 * rng.standard_normal((len(pids[block]), d), np.float32)
    features.flush()
    query_pids = rng.integers(1, people + 1, queries)
    query_features = centres[query_pids] + 3 * rng.standard_normal((queries, d), np.float32)
    query = FeatureSet(query_features, query_pids, rng.integers(1, 7, queries))
    return query, FeatureSet(np.load(path, mmap_mode="r"), pids, rng.integers(1, 7, gallery))


def multiply(query: FeatureSet, gallery: FeatureSet) -> None:
    """Compute every query-gallery product and discard it."""
    query_features = torch.from_numpy(query.features)
    for start in range(0, len(gallery.pids), 16384):
        query_features @ torch.from_numpy(np.array(gallery.features[start : start + 16384])).T


def anonymous_bytes() -> int:
    """Return the size of the process's memory that is not a mapped file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return the wall time in seconds and the peak of additional memory in MB, sampled every 5 ms."""
    before, peak, done = anonymous_bytes(), 0, threading.Event()

    def sample_memory() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_bytes())

    sampler = threading.Thread(target=sample_memory)
    sampler.start()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    done.set()
    sampler.join()
    return seconds, max(0, peak - before) / 1e6


def peer_seconds(query: FeatureSet, gallery: FeatureSet, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        data: dict[str, np.ndarray] = {}
        for role, images in {"query": query, "gallery": gallery}.items():
            data |= {role: images.features, f"{role}_pids": images.pids, f"{role}_camids": images.camids}
        np.savez(Path(folder, "data.npz"), **data)
        command = [str(PEER_PYTHON), "-c", PEER_PROGRAM, str(Path(folder, "data.npz")), str(threads)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15913)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rerank", action="store_true")
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = f"{options.queries:,} x {options.gallery:,}, d = {options.features}"
    with tempfile.TemporaryDirectory() as folder:
        query, gallery = draw_sets(Path(folder, "gallery.npy"), options.queries, options.gallery, options.features)
        print(f"{size}, {options.threads} threads, median of {options.rounds} alternating rounds")
        cases: dict[str, Callable[[], object]] = {
            "matrix multiplication": lambda: multiply(query, gallery),
            "market1501": lambda: score_protocol(PROTOCOLS["market1501"], query, gallery),
            "market1501, expected ties": lambda: score_protocol(PROTOCOLS["market1501"], query, gallery, ties="expected"),
        }
        if options.rerank:
            cases["market1501, re-ranked"] = lambda: score_protocol(PROTOCOLS["market1501"], query, gallery, reranking=Reranking())
        rounds = [{name: measure(run) for name, run in cases.items()} for _ in range(options.rounds)]
        print(f"{'':28}{'seconds':>9}{'ratio':>10}{'MB more':>9}")
        for name in cases:
            seconds, memory = (statistics.median(results[name][i] for results in rounds) for i in (0, 1))
            ratio = statistics.median(results[name][0] / results["matrix multiplication"][0] for results in rounds)
            print(f"{name:28}{seconds:9.2f}{ratio:10.2f}{memory:9.0f}")
        if options.peer:
            seconds = peer_seconds(query, gallery, options.threads)
            baseline = statistics.median(results["matrix multiplication"][0] for results in rounds)
            print(f"{'torchreid, pure Python':28}{seconds:9.2f}{seconds / baseline:10.2f}")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(f"peak memory of the process, including mapped files: {peak:,.0f} MB")


if __name__ == "__main__":
    main()
