"""All steps of the method on a GPU: are they equal to the CPU's, how fast are they, and how much memory do they take?

`python benchmarks/gpu.py` prints a table, and writes it and JSON to .pul/gpu.md and .pul/gpu.json after every line, so that a run that is
cut off keeps what it had. It requires only what `pul_core` requires. Each part is a process with a limit of time: together at most six
minutes. `--device cpu --tiny` only shows that everything works.
"""

import argparse
import contextlib
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms; read when CUDA starts
sys.path.insert(0, str(Path(__file__).parents[1]))  # the project need not be installed
sys.path.insert(0, str(Path(__file__).parent))  # also if Python does not add it (PYTHONSAFEPATH)

import torch
from drawn import draw_people
from equality import CHECKS, draw_query_and_gallery, train_twice
from learning import measure_model

from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.recipes import MODERN
from pul_core.scoring.protocols import PROTOCOLS, score_protocol
from pul_core.settings import KMeans
from pul_core.synthetic import people as drawn_people
from pul_core.synthetic.people import Sizes

IMAGES_PER_PERSON = 20
BAR = 0.9


class Scale(NamedTuple):
    """The sizes of all parts."""

    cases: tuple[tuple[str, int, int, int, int], ...]  # model, height, width, batch, steps
    sizes: tuple[int, ...]
    features: int
    queries: int
    training_steps: int  # of the deterministic trainings
    backbone: str  # of the loop
    pixels: tuple[int, int]  # height and width of the images of the loop
    source: Sizes
    target: Sizes
    epochs: int
    neighbours: int  # k of the loop's DBSCAN


FULL = Scale(
    cases=(("mobilenetv2_100", 128, 64, 64, 60), ("resnet50", 256, 128, 64, 40), ("resnet50", 256, 128, 256, 15)),
    sizes=(13_000, 100_000, 1_000_000),
    features=512,
    queries=3368,
    training_steps=8,
    backbone="mobilenetv2_100",
    pixels=(128, 64),
    source=Sizes(train_identities=70, train_images=1000, test_identities=2, queries=2, gallery_images=8),
    target=Sizes(train_identities=70, train_images=1000, test_identities=50, queries=150, gallery_images=500),
    epochs=8,
    neighbours=10,
)
TINY = Scale(
    cases=(("test_resnet", 64, 32, 4, 2),),
    sizes=(300, 600),
    features=16,
    queries=40,
    training_steps=2,
    backbone="test_resnet",
    pixels=(64, 32),
    source=Sizes(train_identities=6, train_images=36, test_identities=2, queries=2, gallery_images=8),
    target=Sizes(train_identities=6, train_images=36, test_identities=4, queries=8, gallery_images=24),
    epochs=1,
    neighbours=3,
)


class Line(NamedTuple):
    """A line of the table."""

    what: str
    value: float | None
    unit: str
    status: str  # "equal", "measured", "above the bar", ...; one that begins with "FAILED" makes the exit code 1
    memory: str = ""


Part = Callable[[str, Scale, float], Iterator[Line]]  # device, sizes, seconds that are left to the part


def check_equality(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(1) Every device-aware function equals the CPU within a tolerance."""
    for name, check in CHECKS.items():
        try:
            difference = check.difference(check.run("cpu", 0), check.run(device, 0))
            status = "equal" if difference <= check.tolerance else "FAILED: not equal"
            yield Line(name, difference, f"difference, at most {check.tolerance:g}", status)
        except Exception as error:  # the other functions are to be checked
            yield Line(name, None, "difference", f"FAILED: {describe(error)}")


def check_determinism(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(2) Two deterministic trainings end in the same bytes."""
    first, second = train_twice(device, deterministic=True, steps=scale.training_steps)
    different = sum(a != b for a, b in zip(first, second, strict=True)) if first != second else 0
    yield Line("two deterministic trainings", different, "different bytes", "FAILED: not the same bytes" if different else "equal")
    seconds = {True: 0.0, False: 0.0}
    for deterministic in (True, False, True, False):
        started = time.perf_counter()
        train_twice(device, deterministic=deterministic, steps=scale.training_steps)
        seconds[deterministic] += time.perf_counter() - started
    yield Line("time of deterministic algorithms", seconds[True] / seconds[False], "times that of the others", "measured")


def compare_learning(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(3) Training and extraction against the bare model on tensors on the device."""
    for name, h, w, batch, steps in scale.cases:
        results = measure_model(name, h, w, batch, steps, device=device, rounds=3)
        for step in ("training", "extraction"):
            ours, ratio = results[step]["ours"], results[step]["ratio"]
            yield Line(f"{step}, {name}, {h} x {w}, batch {batch}", ours, "images/s", "measured")
            status = "above the bar" if ratio >= BAR else "BELOW the bar"
            yield Line("its ratio to the bare model", ratio, f"the bar is {BAR}", status, peak_memory(device))


def measure_sizes(
    what: str, prepare: Callable[[int], Callable[[], str]], power: int, device: str, scale: Scale, budget: float
) -> Iterator[Line]:
    """Time a function at growing sizes. A size that would exceed the budget, to judge by the one before, is not run.

    ``prepare`` draws the data of n images and returns the function to time, which describes its result. Its time grows with ``n ** power``.
    """
    deadline, last = time.perf_counter() + budget, (0, 0.0)
    for n in scale.sizes:
        estimate = last[1] * (n / last[0]) ** power if last[0] else 0
        left = deadline - time.perf_counter()
        if estimate > left:
            yield Line(f"{what}, {n:,}", None, "s", f"not run: about {estimate:,.0f} s, {left:,.0f} s are left")
            continue
        run = prepare(n)
        started = time.perf_counter()
        result = run()
        last = n, time.perf_counter() - started
        yield Line(f"{what}, {n:,}", last[1], "s", f"measured: {result}", peak_memory(device))


def density_by_size(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(4) Neighbours, Jaccard distances and DBSCAN, camera-aware."""

    def prepare(n: int) -> Callable[[], str]:
        people = draw_people(n, scale.features, images_per_person=IMAGES_PER_PERSON, device=device)

        def run() -> str:
            clusters = cluster_by_density(people.features, people.camids, MODERN.dbscan, device=device)
            return f"{len(clusters.centre):,} clusters of {n // IMAGES_PER_PERSON:,} people"

        return run

    yield from measure_sizes("neighbours + Jaccard + DBSCAN", prepare, 2, device, scale, budget)


def kmeans_by_size(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(4) k-means with a cluster per person."""

    def prepare(n: int) -> Callable[[], str]:
        features = draw_people(n, scale.features, images_per_person=IMAGES_PER_PERSON, device=device).features

        def run() -> str:
            clusters = cluster_by_kmeans(features, KMeans(num_clusters=n // IMAGES_PER_PERSON), seed=0, device=device)
            return f"inertia {clusters.inertia:,.1f} after {clusters.passes} passes"

        return run

    yield from measure_sizes("k-means", prepare, 2, device, scale, budget)


def scoring_by_size(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(4) Scoring under the rules of Market-1501."""

    def prepare(n: int) -> Callable[[], str]:
        sets = draw_query_and_gallery(scale.queries, n, scale.features, device=device)

        def run() -> str:
            scores = score_protocol(PROTOCOLS["market1501"], *sets, device=device).scores
            return f"mAP {scores.ap[scores.num_positives > 0].mean():.3f}"

        return run

    yield from measure_sizes(f"scoring, {scale.queries:,} queries", prepare, 1, device, scale, budget)


def run_loop(device: str, scale: Scale, budget: float) -> Iterator[Line]:
    """(5) examples/pul_by_hand.py on synthetic people from random weights: the share of each step."""
    spec = importlib.util.spec_from_file_location("pul_by_hand", Path(__file__).parents[1] / "examples" / "pul_by_hand.py")
    assert spec and spec.loader
    by_hand = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(by_hand)
    seconds: dict[str, float] = {}
    steps = {
        "read_split": "drawing and decoding",
        "begin_training": "training",
        "train": "training",
        "extract_features": "extraction",
        "cluster_features": "clustering",
        "select_reliable": "selection",
        "similar_classes": "selection",
        "score_protocol": "scoring",
    }
    for name, step in steps.items():
        setattr(by_hand, name, timed(getattr(by_hand, name), step, seconds))
    drawn_people.SIZES.update(source=scale.source, target=scale.target)
    recipe = replace(
        MODERN,
        model=replace(MODERN.model, backbone=scale.backbone, weights="random", height=scale.pixels[0], width=scale.pixels[1]),
        pretraining=replace(MODERN.pretraining, epochs=scale.epochs),
        fine_tuning=replace(MODERN.fine_tuning, epochs=max(1, scale.epochs // 2)),
        dbscan=replace(MODERN.dbscan, num_neighbours=scale.neighbours),
        stopping=replace(MODERN.stopping, max_iterations=2),
    )
    if device == "cpu":
        torch.cuda.is_available = lambda: False  # the example uses a GPU wherever there is one
    started = time.perf_counter()
    for t, (_, scores, *_) in enumerate(by_hand.adapt("synthetic:10/source", "synthetic:10/target", recipe, 0)):
        yield Line(f"loop, mAP of iteration {t}", scores.mean_ap, "", "measured", peak_memory(device))
    total = time.perf_counter() - started
    yield Line("loop, all", total, "s", "measured", peak_memory(device))
    for step, value in seconds.items():
        yield Line(f"loop, {step}", value, "s", f"{value / total:.1%} of the loop")
    yield Line("loop, everything else", total - sum(seconds.values()), "s", f"{1 - sum(seconds.values()) / total:.1%} of the loop")


def timed(function: Callable[..., Any], step: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Wrap a function, or a generator's every step, so that its time is added to a step's."""
    generates = inspect.isgeneratorfunction(function)

    def clock(call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        try:
            return call()
        finally:
            seconds[step] = seconds.get(step, 0) + time.perf_counter() - started

    def wrapper(*arguments: Any, **options: Any) -> Any:
        if not generates:
            return clock(lambda: function(*arguments, **options))
        return iterate(function(*arguments, **options))

    def iterate(iterator: Iterator[Any]) -> Iterator[Any]:
        end = object()
        while (value := clock(lambda: next(iterator, end))) is not end:
            yield value

    return wrapper


PARTS: dict[str, tuple[Part, float]] = {  # seconds, together less than six minutes
    "equality": (check_equality, 45),
    "determinism": (check_determinism, 30),
    "learning": (compare_learning, 65),
    "density": (density_by_size, 75),
    "kmeans": (kmeans_by_size, 50),
    "scoring": (scoring_by_size, 30),
    "loop": (run_loop, 60),
}


def peak_memory(device: str) -> str:
    """(6) Return the peak memory of the part so far, on the GPU and of the process."""
    process = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB process"
    return process if device == "cpu" else f"{torch.cuda.max_memory_allocated() / 1e9:.2f} GB GPU, {process}"


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:200]}"


def run_in_child(part: Part, device: str, scale: Scale, budget: float, pipe: Connection) -> None:
    """Send the lines of a part as they come, and an error as a line."""
    with pipe, contextlib.redirect_stdout(io.StringIO()):  # the example prints its epochs
        try:
            for line in part(device, scale, budget):
                pipe.send(line)
        except Exception as error:
            traceback.print_exc()
            pipe.send(Line(part.__name__, None, "", f"FAILED: {describe(error)}"))


def run_part(name: str, device: str, scale: Scale, factor: float) -> Iterator[Line]:
    """Run a part in a process of its own: a crash, or an error that leaves CUDA unusable, does not reach the others."""
    part, budget = PARTS[name][0], PARTS[name][1] * factor
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # Forked, so that the libraries are imported once. This process must not use CUDA or threads of torch: they would not survive.
    process = multiprocessing.get_context("fork").Process(target=run_in_child, args=(part, device, scale, budget, sender))
    process.start()
    sender.close()
    deadline = time.monotonic() + budget
    with receiver:
        try:
            while receiver.poll(max(0, deadline - time.monotonic())):
                yield receiver.recv()
            process.kill()
            yield Line(name, None, "", f"not finished: stopped after {budget:.0f} s")
        except EOFError:
            pass
    process.join()
    if process.exitcode and process.exitcode != -9:
        yield Line(name, None, "", f"FAILED: the process ended with exit code {process.exitcode}")


def describe_machine(device: str) -> dict[str, str]:
    """Return the names of the card and of its driver, and the versions; CUDA is not started."""
    machine = {"date": time.strftime("%Y-%m-%d"), "device": device, "python": platform.python_version(), "torch": torch.__version__}
    if device == "cpu":
        return machine | {"card": f"none: not run on a GPU; {os.cpu_count()} CPUs"}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        card = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        card = f"unknown ({describe(error)})"
    return machine | {"card": card}


def write(out: Path, machine: dict[str, str], lines: list[dict[str, Any]]) -> None:
    """Write the table and the JSON."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps({**machine, "lines": lines}, indent=2) + "\n", encoding="utf-8")
    table = [", ".join(f"{name} {value}" for name, value in machine.items()), "", row(*TITLES), "|---" * len(TITLES) + "|"]
    out.with_suffix(".md").write_text("\n".join([*table, *(row(*line.values()) for line in lines)]) + "\n", encoding="utf-8")


TITLES = ("part", "what", "value", "unit", "status", "peak memory")


def row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:,.4g}" if isinstance(cell, float) else "-" if cell is None else str(cell) for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds on a CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget", type=float, default=1.0, help="multiplies the seconds of every part")
    parser.add_argument("--out", type=Path, default=Path(".pul/gpu"), help="path of the table and the JSON, without extension")
    options = parser.parse_args()
    machine, lines = describe_machine(options.device), []
    print(", ".join(f"{name} {value}" for name, value in machine.items()), f"\n\n{row(*TITLES)}\n{'|---' * len(TITLES)}|", flush=True)
    for name in options.only:
        for line in run_part(name, options.device, TINY if options.tiny else FULL, options.budget):
            lines.append({"part": name, **line._asdict()})
            print(row(*lines[-1].values()), flush=True)
            write(options.out, machine, lines)
    return int(any(line["status"].startswith("FAILED") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
