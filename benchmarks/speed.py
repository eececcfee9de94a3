"""One table of who is ahead and by how much: this project, the bare model, scikit-learn, faiss, the dense way, torchreid and reid.

`make bench` (after `make peers`) prints it and writes .pul/bench.json. All get the same inputs and the same number of threads. Ratios can
be compared between machines, but not seconds or images/s. `--quick` only shows that everything works: its sizes are too small to measure.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project need not be installed
sys.path.insert(0, str(Path(__file__).parent))  # also if Python does not add it (PYTHONSAFEPATH)

import numpy as np
import torch
from dense import cluster_dense
from drawn import draw_people
from evaluation import draw_sets, measure
from scipy import sparse
from sklearn.cluster import KMeans as ScikitLearnKMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.scoring.evaluation import summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, score_protocol
from pul_core.scoring.reranking import reranked_distances
from pul_core.settings import Dbscan, KMeans
from tasks.engine.compute import available_cores, library_versions, prepare
from tasks.store.references import Compute

HERE = Path(__file__).parent
CASES = (("mobilenetv2_100", 128, 64, 32, 12), ("resnet50", 256, 128, 32, 3))  # model, height, width, batch, steps
QUICK = {"images": 300, "features": 16, "clusters": 20, "queries": 40, "gallery": 200, "reranked": (20, 100), "rounds": 1}
QUICK_CASES = (("mobilenetv2_100", 64, 32, 4, 1),)
DENSITY = Dbscan(camera_aware=False)
KMEANS_ROUNDS = 5  # of ours and faiss; scikit-learn takes ten times as long
Timed = Callable[[], object]


class Row(NamedTuple):
    """A line of the table; ``key`` begins the names of its numbers in bench.json. None is what could not be measured, the note says why."""

    key: str
    what: str
    unit: str  # "s", of which fewer are better, or "images/s"
    ours: float | None
    peer_name: str
    peer: float | None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the peer we are."""
        if self.ours is None or self.peer is None:
            return None
        return self.peer / self.ours if self.unit == "s" else self.ours / self.peer

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        ours, peer, ratio = ("-" if value is None else f"{value:,.2f}" for value in (self.ours, self.peer, self.ratio))
        ahead = "-"
        if self.ratio is not None:
            factor = max(self.ratio, 1 / self.ratio)
            ahead = "level" if factor < 1.03 else f"{'ours' if self.ratio > 1 else 'peer'}, {factor:.2f} times"
        return self.what, self.unit, ours, self.peer_name, peer, ratio, ahead, self.note


TITLES = ("what", "unit", "ours", "peer", "peer's", "ratio", "ahead", "note")


def compare_learning(options: argparse.Namespace) -> Iterator[Row]:
    """Training and extraction against the bare model, with the denormal numbers that training leaves: flushed as in a run, and kept."""
    flushed = run_learning(options, "--denormals", "flushed")
    kept = run_learning(options, "--denormals", "kept", cases=options.cases[:1])
    for case, results in flushed.items():
        for step in ("training", "extraction"):
            yield Row(f"{case}_{step}", f"{step}, {case}", "images/s", results[step]["ours"], "bare model", results[step]["bare"])
        if case not in kept:
            continue
        counts = kept[case]["denormals"]
        denormals = f"{counts['weights']:,} weights and {counts['moments']:,} moments are denormal"
        ours, bare = kept[case]["training"]["ours"], kept[case]["training"]["bare"]
        yield Row(f"{case}_training_unflushed", f"training, {case}, not flushed", "images/s", ours, "bare model", bare, denormals)
        yield Row(
            f"{case}_flushing", f"training, {case}, flushed", "images/s", results["training"]["ours"], "ours, not flushed", ours, denormals
        )


def compare_waiting(options: argparse.Namespace) -> Iterator[Row]:
    """Training with threads that sleep while they wait, against threads that spin: on a quiet machine, and while one core is busy."""
    case = options.cases[0]
    names = {"quiet": "training, quiet machine, passive waiting", "busy_core": "training, one core busy, passive waiting"}
    if options.threads < 2 or not hasattr(os, "sched_setaffinity"):
        for state, what in names.items():
            yield Row(f"{state}_passive", what, "images/s", None, "other policies", None, "not measured: it needs two cores and Linux")
        return
    speeds: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for state, policy in ((state, policy) for state in names for policy in ("passive", "unset", "active")):
            with spinning() if state == "busy_core" else contextlib.nullcontext():
                results = run_learning(options, "--training-alone", cases=[(*case[:4], max(1, case[4] // 3))], policy=policy)
            speeds.setdefault((state, policy), []).extend(results.values())
    medians = {key: statistics.median(values) for key, values in speeds.items()}
    for state, what in names.items():
        for policy in ("unset", "active"):
            ours, peer = medians[state, "passive"], medians[state, policy]
            yield Row(f"{state}_passive_over_{policy}", what, "images/s", ours, f"OMP_WAIT_POLICY {policy}", peer)


def run_learning(options: argparse.Namespace, *arguments: str, cases: object = None, policy: str = "unset") -> dict:
    """Run learning.py in a process of its own, with a wait policy of OpenMP."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if policy == "unset" else {"OMP_WAIT_POLICY": policy}
    sizes = json.dumps(cases or options.cases), "--threads", str(options.threads), "--rounds", str(options.learning_rounds)
    command = [sys.executable, str(HERE / "learning.py"), *sizes, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return {case: results for line in done.stdout.splitlines() for case, results in json.loads(line).items()}


@contextlib.contextmanager
def spinning() -> Iterator[None]:
    """Keep one of this process's cores busy during the block."""
    core = max(os.sched_getaffinity(0))
    process = subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compare_kmeans(options: argparse.Namespace, features: np.ndarray) -> Iterator[Row]:
    """k-means of L2-normalised features; the inertia of all is computed here, from their clusters."""
    points = features / np.linalg.norm(features, axis=1, keepdims=True)
    k, results = options.clusters, {}

    def ours() -> None:
        results["ours"] = cluster_by_kmeans(points, KMeans(num_clusters=k), seed=0).cluster

    def scikit_learn() -> None:
        results["scikit-learn"] = ScikitLearnKMeans(k, n_init=1, max_iter=100, random_state=0).fit(points).labels_

    rounds = max(options.rounds, KMEANS_ROUNDS)
    measured = alternate({"ours": ours}, rounds) | alternate({"scikit-learn": scikit_learn}, options.rounds)
    seconds = {name: time_ for name, (time_, _) in measured.items()}
    peer_names = {"scikit-learn": f"scikit-learn {library_versions()['scikit-learn']}, 1 run"}
    faiss = run_peer("faiss_kmeans", {"points": points, "num_clusters": np.array(k)}, options, rounds)
    if "output" in faiss:
        results["faiss"], seconds["faiss"], peer_names["faiss"] = faiss["output"], faiss["seconds"], faiss["name"]
    what, inertias = f"k-means, {len(points):,} x {points.shape[1]:,}, K = {k}", {name: inertia(points, c) for name, c in results.items()}
    for name, peer_name in peer_names.items():
        note = f"inertia {inertias['ours']:,.1f}, peer {inertias[name]:,.1f}"
        yield Row(f"kmeans_{name.replace('-', '_')}", what, "s", seconds["ours"], peer_name, seconds[name], note)
    if "output" not in faiss:
        yield Row("kmeans_faiss", what, "s", seconds["ours"], "faiss", None, faiss["problem"])


def inertia(points: np.ndarray, clusters: np.ndarray) -> float:
    """Return the sum of the squared distances of unit vectors to the mean of their cluster."""
    sizes = np.bincount(clusters)
    membership = sparse.csr_matrix((np.ones(len(clusters)), (clusters, np.arange(len(clusters)))), shape=(len(sizes), len(clusters)))
    sums = membership @ points.astype(np.float64)
    return len(points) - float(((sums**2).sum(1) / sizes.clip(min=1)).sum())


def compare_density(options: argparse.Namespace, features: np.ndarray) -> Iterator[Row]:
    """Neighbours, Jaccard distances and DBSCAN, without cameras, against the dense way."""
    results = {}
    settings = {"max_distance": DENSITY.max_distance, "min_samples": DENSITY.min_samples}

    def ours() -> None:
        results["ours"] = cluster_by_density(features, np.zeros(len(features), np.int64), DENSITY).cluster

    def dense() -> None:
        results["dense"] = cluster_dense(features, k1=DENSITY.num_neighbours, k2=DENSITY.num_averaged, **settings)

    measured = alternate({"ours": ours, "dense": dense}, options.rounds)
    memory = ", ".join(f"{name} {megabytes:,.0f} MB" for name, (_, megabytes) in measured.items())
    agreement = adjusted_rand_score(results["ours"], results["dense"])
    note = f"{memory}; {1 + results['ours'].max():,} clusters, adjusted Rand index {agreement:.3f}"
    what = f"neighbours + Jaccard + DBSCAN, {len(features):,} x {features.shape[1]:,}"
    yield Row("density_dense", what, "s", measured["ours"][0], "dense N x N (numpy)", measured["dense"][0], note)


def compare_scoring(options: argparse.Namespace, query: FeatureSet, gallery: FeatureSet) -> Iterator[Row]:
    """Distances, rank-k and mAP under the rules of Market-1501."""
    results = {}

    def ours() -> None:
        results["mAP"] = summarise(score_protocol(PROTOCOLS["market1501"], query, gallery).scores).mean_ap

    seconds, _ = alternate({"ours": ours}, options.rounds)["ours"]
    for peer in ("torchreid", "reid"):
        done = run_peer(f"{peer}_scoring", as_arrays(query, gallery), options)
        note = done.get("problem") or f"mAP {results['mAP']:.4f}, peer {done['result']:.4f}"
        what = f"scoring, {len(query.pids):,} x {len(gallery.pids):,}, d = {query.features.shape[1]:,}"
        yield Row(f"scoring_{peer}", what, "s", seconds, done.get("name", peer), done.get("seconds"), note)


def compare_reranking(options: argparse.Namespace, query: FeatureSet, gallery: FeatureSet) -> Iterator[Row]:
    """k-reciprocal re-ranking: the distances from all queries to all gallery images."""
    q, g = options.reranked
    query, gallery = (FeatureSet(*(part[:size] for part in images)) for images, size in ((query, q), (gallery, g)))
    results = {}

    def ours() -> None:
        results["ours"] = reranked_distances(query.features, np.array(gallery.features))(np.arange(len(gallery.pids)))(np.arange(q))

    seconds, megabytes = alternate({"ours": ours}, options.rounds)["ours"]
    done = run_peer("torchreid_reranking", as_arrays(query, gallery), options)
    note = done.get("problem", f"ours {megabytes:,.0f} MB")
    if "output" in done:
        note += f"; mean absolute difference {np.abs(np.asarray(results['ours']) - done['output']).mean():.1e}"
    name, peer_seconds = done.get("name", "torchreid"), done.get("seconds")
    yield Row("reranking_torchreid", f"re-ranking, {q:,} x {len(gallery.pids):,}", "s", seconds, name, peer_seconds, note)


def alternate(runs: dict[str, Timed], rounds: int) -> dict[str, tuple[float, float]]:
    """Run everything in turn; return the median seconds and the largest additional memory in MB of each."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            with contextlib.suppress(OSError, AttributeError):  # another C library: the memory may be underestimated
                ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed is not to be counted as there before
            measured[name].append(measure(run))
    return {name: (statistics.median(s for s, _ in pairs), max(mb for _, mb in pairs)) for name, pairs in measured.items()}


def as_arrays(query: FeatureSet, gallery: FeatureSet) -> dict[str, np.ndarray]:
    roles = {"query": query, "gallery": gallery}
    arrays = {role: np.asarray(images.features) for role, images in roles.items()}
    return arrays | {f"{role}_{part}": getattr(images, part) for role, images in roles.items() for part in ("pids", "camids")}


def run_peer(peer: str, arrays: dict[str, np.ndarray], options: argparse.Namespace, rounds: int | None = None) -> dict:
    """Run a function of peers.py on arrays; return its seconds and result, or the ``problem`` if it did not run."""
    python = options.peers / "bin" / "python"
    if not python.exists():
        return {"problem": "not installed: make peers"}
    with tempfile.TemporaryDirectory() as folder:
        for name, array in arrays.items():
            np.save(Path(folder, f"{name}.npy"), array)
        command = [str(python), str(HERE / "peers.py"), peer, folder, str(options.threads), str(rounds or options.rounds)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            missing = "not installed: make peers" if "ModuleNotFoundError" in done.stderr else f"exit code {done.returncode}"
            return {"problem": f"{missing} ({(done.stderr.strip().splitlines() or ['no message'])[-1]})"}
        result: dict = json.loads(done.stdout.splitlines()[-1])
        output = Path(folder, f"{peer}.npy")
        return result | ({"output": np.load(output)} if output.exists() else {})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="repetitions, of which the median counts; training is timed three times, our k-means and faiss at least five",
    )
    parser.add_argument("--features-file", type=Path, help="(n, d) .npy to cluster, instead of drawn features")
    parser.add_argument("--images", type=int, default=12_936)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--clusters", type=int, default=750)
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=15_913)
    parser.add_argument("--reranked", type=int, nargs=2, default=(1684, 7956), metavar=("QUERIES", "GALLERY"))
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers", help="the environment of the peers")
    parser.add_argument("--out", type=Path, default=Path(".pul/bench.json"))
    parser.set_defaults(cases=CASES, learning_rounds=3)
    if "--quick" in sys.argv:
        parser.set_defaults(**QUICK, cases=QUICK_CASES, learning_rounds=1)
    return parser.parse_args()


PARTS = ("learning", "waiting", "kmeans", "density", "scoring", "reranking")


def run_parts(options: argparse.Namespace) -> Iterator[Row]:
    if "learning" in options.only:
        yield from compare_learning(options)
    if "waiting" in options.only:
        yield from compare_waiting(options)
    if {"kmeans", "density"} & set(options.only):
        features = np.load(options.features_file) if options.features_file else draw_people(options.images, options.features).features
        if "kmeans" in options.only:
            yield from compare_kmeans(options, features)
        if "density" in options.only:
            yield from compare_density(options, features)
    if {"scoring", "reranking"} & set(options.only):
        with tempfile.TemporaryDirectory() as folder:
            sets = draw_sets(Path(folder, "gallery.npy"), options.queries, options.gallery, options.features)
            if "scoring" in options.only:
                yield from compare_scoring(options, *sets)
            if "reranking" in options.only:
                yield from compare_reranking(options, *sets)


def processor() -> str:
    """Return the name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    options = parse()
    prepare(Compute(device="cpu", threads=options.threads, dtype="float32"))
    torch.set_flush_denormal(True)
    versions = {"python": platform.python_version(), **library_versions()}
    results: dict[str, object] = {"date": time.strftime("%Y-%m-%d"), "cpu": processor(), "threads": options.threads, "versions": versions}
    results |= {"quick": True} if options.quick else {}
    print(
        f"{results['date']}, {results['cpu']}, {options.threads} threads, torch {versions['torch']}; ratio: how many times as fast we are\n"
    )
    print("| " + " | ".join(TITLES) + " |\n" + "|---" * len(TITLES) + "|", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with threadpool_limits(options.threads):
        for row in run_parts(options):
            print("| " + " | ".join(row.cells()) + " |", flush=True)
            unit = "seconds" if row.unit == "s" else "images_per_second"
            numbers = {unit: row.ours, f"peer_{unit}": row.peer, "ratio": row.ratio}
            results |= {f"{row.key}_{name}": round(value, 3) for name, value in numbers.items() if value is not None}
            results |= {f"{row.key}_note": row.note} if row.note else {}
            options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
