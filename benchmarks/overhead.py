"""Overhead of an iteration: the seconds that Prefect, MLflow, files and digests take beside the computing, at Market-1501's size.

A real flow run with a Prefect server and MLflow, in which the functions that compute (features, clusters, training, scores) are replaced by
stubs that return arrays of the right shape. Whatever an iteration still takes is overhead, except what threads do beside the steps. It is
printed by part, with its share of an iteration whose computing takes a given number of seconds: ``--computing``, by default the time of
training and extraction at the speeds that `make bench` wrote to .pul/bench.json. Clustering and scoring are then left out, so the share is
an upper bound.

Usage: python benchmarks/overhead.py [--backbone NAME] [--size HxW] [--iterations N] [--computing SECONDS] [--json FILE]
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

SPLITS = {"bounding_box_train": 12_936, "query": 3_368, "bounding_box_test": 15_913}  # Market-1501
NUM_TRAIN, NUM_IMAGES = SPLITS["bounding_box_train"], sum(SPLITS.values())
PEOPLE, CAMERAS = 750, 6
BATCH_SIZE = 32  # of feature extraction on a CPU
RELIABLE_SHARE = 0.8  # of the training images
PARTS = ("orchestration", "tracking", "storage", "hashing", "models", "steps")


class Clock:
    """Seconds by part in one thread. Parts may be nested; the time of an inner part does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.thread = threading.get_ident()
        self.parts = ["orchestration"]
        self.last = time.perf_counter()

    def _switch(self) -> None:
        now = time.perf_counter()
        self.seconds[self.parts[-1]] += now - self.last
        self.last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Let the seconds of the block count for a part."""
        if threading.get_ident() != self.thread:
            yield
            return
        self._switch()
        self.parts.append(name)
        try:
            yield
        finally:
            self._switch()
            self.parts.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let the seconds of a function count for a part."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def lap(self) -> Counter[str]:
        """Return the seconds since the last call."""
        self._switch()
        seconds, self.seconds = self.seconds, Counter()
        return seconds


def write_images(root: Path) -> Path:
    """Write a data set with the folders and the number of images of Market-1501; the images are 8 x 4 pixels, and all differ."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder, count in SPLITS.items():
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pid = number % PEOPLE + 1 + (0 if folder == "bounding_box_train" else PEOPLE)
            camera = number // PEOPLE % CAMERAS + 1 if folder != "query" else 1
            name = f"{pid:04d}_c{camera}s1_{number:06d}_00.jpg"
            Image.fromarray(rng.integers(0, 256, (8, 4, 3), np.uint8)).save(root / folder / name)
    return root


def replace_everywhere(function: Any, replacement: Any) -> None:
    """Replace a function in all modules of the project that have imported it."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] in ("tasks", "flows", "pul_core"):
            for name, value in list(vars(module).items()):
                if value is function:
                    setattr(module, name, replacement)


def stub_features(clock: Clock, d: int) -> Callable[..., Any]:
    """Return a stub for `pul_core.learning.extraction.extract_features`."""
    features = np.random.default_rng(1).normal(size=(NUM_IMAGES, d)).astype(np.float32)
    calls = itertools.count()

    def extract_features(backbone: Any, images: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with clock.part("computing"):
            values = features[: len(images)] + np.float32(next(calls))  # new bytes
        for start in range(0, len(images), BATCH_SIZE):
            yield values[start : start + BATCH_SIZE]

    return extract_features


def stub_clusters(clock: Clock) -> Callable[..., Any]:
    """Return a stub for `pul_core.clustering.cluster.cluster_features`."""
    from pul_core.clustering.centres import Clusters

    rng = np.random.default_rng(2)

    def cluster_features(values: Any, *args: Any, **kwargs: Any) -> Any:
        with clock.part("computing"):
            n = len(values)
            assignment, centre = np.arange(n) % (n // 16), np.arange(n // 16)
            similarity = np.where(rng.random(n) < RELIABLE_SHARE, 0.9, 0.1).astype(np.float32)
            similarity[centre] = 1
            return Clusters(assignment, centre, similarity, similarity), np.array(values)

    return cluster_features


def stub_training(clock: Clock) -> Callable[..., Any]:
    """Return a stub for `pul_core.learning.training.train`: one step of the optimiser, and all calls that the step expects."""
    from pul_core.learning.training import EpochStatistics

    calls = itertools.count(1)

    def train(state: Any, images: Any, rows: Any, classes: Any, settings: Any, *args: Any, on_batch: Any = None, **kwargs: Any) -> Any:
        with clock.part("computing"):
            for parameter in itertools.chain(*(group["params"] for group in state.optimiser.param_groups)):
                parameter.grad = parameter.detach() * (1 + next(calls) / 1_000_000)  # new bytes, and a state of the optimiser
            state.optimiser.step()
            state.optimiser.zero_grad()
        while state.epochs_done < settings.epochs:
            for start in range(0, len(rows), settings.batch_size):
                on_batch(min(settings.batch_size, len(rows) - start))
            state.epochs_done += 1
            yield EpochStatistics(state.epochs_done, len(rows), len(rows) // settings.batch_size, 1.0, 0.5, 0.001)

    return train


def stub_scores(clock: Clock) -> Callable[..., Any]:
    """Return a stub for `pul_core.scoring.protocols.score_protocol`."""
    from pul_core.scoring.evaluation import Scores
    from pul_core.scoring.protocols import ProtocolScores

    rng = np.random.default_rng(3)

    def score_protocol(protocol: Any, query: Any, gallery: Any, **kwargs: Any) -> Any:
        with clock.part("computing"):
            n = len(query.pids)
            fractions = (rng.random(n) for _ in range(3))
            ranks, ones = rng.integers(1, 50, n), np.ones(n, np.int64)
            return ProtocolScores(Scores(*fractions, ranks.astype(float), ones * 14, ones, ones * 0), np.arange(n), ones * 0)

    return score_protocol


def stub_computing(clock: Clock, d: int) -> None:
    """Replace the functions that compute; nothing they do counts."""
    from pul_core.clustering import cluster
    from pul_core.learning import extraction, training
    from pul_core.scoring import protocols

    replace_everywhere(extraction.extract_features, stub_features(clock, d))
    replace_everywhere(cluster.cluster_features, stub_clusters(clock))
    replace_everywhere(training.train, stub_training(clock))
    replace_everywhere(protocols.score_protocol, stub_scores(clock))


def time_parts(clock: Clock) -> None:
    """Make the functions of each part count. What is not in any part is orchestration: Prefect, cache keys, stored results."""
    from pul_core.learning import backbone, training
    from tasks import cluster, evaluate, extract
    from tasks import training as training_tasks
    from tasks.engine import checkpoints, progress
    from tasks.store import artifacts, model_file, readers
    from tasks.tracking import runs

    digests = {name: clock.timed("hashing", getattr(hashlib, name)) for name in ("sha256", "file_digest")}

    def sha256(*args: Any) -> Any:
        digest = digests["sha256"](*args)
        names = ("update", "digest", "hexdigest")
        return SimpleNamespace(**{name: clock.timed("hashing", getattr(digest, name)) for name in names})

    timed_hashlib: Any = SimpleNamespace(sha256=sha256, file_digest=lambda file, _: digests["file_digest"](file, "sha256"))
    artifacts.hashlib = checkpoints.hashlib = timed_hashlib
    storage = [artifacts.write_bytes, artifacts.write_batches, artifacts.read_table, artifacts.read_bytes, artifacts.verify]
    storage += [artifacts.column, readers.open_pixels, model_file.write_model]
    for part, functions in {
        "storage": storage,
        "models": [model_file.read_model, backbone.build_backbone, training.begin_training],
        "orchestration": [progress.create_progress_artifact, progress.update_progress_artifact],
    }.items():
        for function in functions:
            replace_everywhere(function, clock.timed(part, function))
    for name in ("save", "load"):
        setattr(checkpoints.StepCheckpoint, name, clock.timed("storage", getattr(checkpoints.StepCheckpoint, name)))
    training_tasks._pack = clock.timed("storage", training_tasks._pack)
    tracked: Any = (runs.track_iteration,)
    computed: Any = (extract.extract_features, cluster.cluster, cluster.select, training_tasks.fine_tune, evaluate.evaluate)
    for part, tasks in (("tracking", tracked), ("steps", computed)):
        for task in tasks:
            task.task.fn = clock.timed(part, task.task.fn)


def measure(backbone: str, height: int, width: int, iterations: int, recipe: str) -> tuple[list[Counter[str]], int]:
    """Run the flow; return the seconds of each iteration by part, and the epochs of fine-tuning."""
    from deployments.environment import configure, use_server

    configure()
    use_server(None)
    from deployments.errors import quieten
    from deployments.servers import prepare_flow_run
    from flows import pul as flow
    from pul_core.learning.backbone import build_backbone
    from pul_core.recipes import RECIPES
    from tasks.store.artifacts import locate
    from tasks.store.home import home
    from tasks.store.model_file import ModelConfig, write_model

    quieten()
    prepare_flow_run()
    target = write_images(home() / "market")
    model = build_backbone(backbone)
    original = write_model(model, ModelConfig(backbone=backbone, height=height, width=width))
    clock = Clock()
    stub_computing(clock, int(model.num_features))  # type: ignore[arg-type]
    time_parts(clock)
    laps: list[Counter[str]] = []
    track_iteration: Any = flow.track_iteration

    def track_and_lap(*args: Any, **kwargs: Any) -> Any:
        metrics = track_iteration(*args, **kwargs)
        laps.append(clock.lap())
        return metrics

    flow.track_iteration = track_and_lap  # type: ignore[assignment]
    parameters: Any = {"stopping": {"max_iterations": iterations, "stop_when_stable": False}, "selection": {"min_similarity": 0.5}}
    flow.pul(target=str(target), original_model=locate(original), recipe=recipe, **parameters)
    return laps[1:], RECIPES[recipe].fine_tuning.epochs  # type: ignore[index]


def estimate_computing(backbone: str, height: int, width: int, epochs: int) -> float | None:
    """Return the seconds that training and extraction of an iteration take at the speeds of .pul/bench.json, if it has them."""
    path = Path(".pul/bench.json")
    speeds = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    names = (f"{backbone}_{height}x{width}_{case}_images_per_second" for case in ("training", "extraction"))
    training, extraction = (speeds.get(name) for name in names)
    return epochs * RELIABLE_SHARE * NUM_TRAIN / training + NUM_IMAGES / extraction if training and extraction else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--size", default="128x64")
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--recipe", default="paper")
    parser.add_argument("--computing", type=float, help="seconds of computing of an iteration")
    parser.add_argument("--json", type=Path, help="write the seconds by part to this file")
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PUL_HOME"] = folder
        for name in ("PUL_ARTIFACTS", "MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
            os.environ.pop(name, None)
        laps, epochs = measure(options.backbone, height, width, options.iterations, options.recipe)
    seconds = {part: statistics.median(lap[part] for lap in laps) for part in PARTS}
    total = sum(seconds.values())
    computing = options.computing or estimate_computing(options.backbone, height, width, epochs)
    print(f"\n{options.backbone}, {height} x {width}, {NUM_IMAGES:,} images: seconds per iteration, median of {len(laps)}")
    for part, value in [*seconds.items(), ("all", total)]:
        share = f"{100 * value / (computing + total):8.2f} %" if computing else ""
        print(f"{part:16}{value:8.2f}{share}")
    print(f"shares of an iteration with {computing:,.0f} s of computing" if computing else "no share: give --computing, or run make bench")
    if options.json:
        options.json.write_text(json.dumps(seconds | {"computing": computing}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
