"""Time, size and memory of a report by the number of images, on a run whose features are drawn; nothing is trained.

.venv/bin/python benchmarks/report.py --images 20000
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

DIMENSIONS, CAMERAS, ITERATIONS, PER_PERSON = 1280, 8, 4, 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000, help="training images, and images of query and gallery together")
    images = parser.parse_args().images
    with tempfile.TemporaryDirectory(prefix="pul-report-") as folder:
        os.environ["PUL_HOME"] = folder
        from deployments.environment import configure

        configure()
        run_id = draw_run(images)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        from tasks.report.build import report_page
        from tasks.report.run_data import read_run

        page = report_page([read_run(run_id)])
        seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = len(page.encode()) / 1e6
    print(f"{images:,} training images: {seconds:.1f} s, {size:.2f} MB, memory {before / 1e3:.0f} to {after / 1e3:.0f} MB at most")


def draw_run(n):
    """Write the artifacts, the folder and the MLflow runs of a finished run, and return its id."""
    import pyarrow as pa

    from tasks.store.artifacts import made_by, vectors, write_table
    from tasks.store.config import parameters_of, resolve_plan
    from tasks.store.home import home
    from tasks.tracking.client import client, get_or_create_experiment

    rng = np.random.default_rng(0)
    queries = n * 3 // 20
    splits = {"train": np.arange(n), "query": np.arange(n, n + queries), "gallery": np.arange(n + queries, 2 * n)}
    pids, camids = rng.integers(1, n // PER_PERSON + 1, 2 * n), rng.integers(1, CAMERAS + 1, 2 * n)
    names = np.concatenate([np.full(len(rows), split) for split, rows in splits.items()])
    paths = [f"bounding_box/{pid:05d}_c{camid}s1_{row:06d}_00.jpg" for row, (pid, camid) in enumerate(zip(pids, camids, strict=True))]
    empty = pa.nulls(2 * n, pa.string())
    columns = {"row": np.arange(2 * n), "path": paths, "camid": camids, "camera": empty, "split": names, "sha256": empty, "problem": empty}
    top = {
        "images": write_table("images", pa.table(columns)),
        "labels": write_table("labels", pa.table({"row": np.arange(2 * n), "pid": pids})),
    }
    people = rng.normal(size=(pids.max() + 1, DIMENSIONS)).astype(np.float32)

    def features(split, noise):
        rows = splits[split]
        values = people[pids[rows]] + noise * rng.normal(size=(len(rows), DIMENSIONS)).astype(np.float32)
        return write_table("features", pa.table({"row": rows, "feature": vectors(values)}))

    experiment = get_or_create_experiment("drawn features").experiment_id
    tags = {"pul.kind": "run", "pul.run_id": "drawn-00000000", "pul.recipe": "paper", "pul.stop_reason": "stable"}
    parent = client().create_run(experiment, run_name="drawn", tags=tags)
    folder = home() / "runs" / "drawn-00000000"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(parameters_of(resolve_plan({"target": "x"}))))
    link(folder, top)
    for number in range(ITERATIONS + 1):
        noise = 6.0 - number
        sets = {split: features(split, noise) for split in ("query", "gallery")}
        quality = np.clip(rng.normal(0.4 + 0.1 * number, 0.2, queries), 0.01, 1)
        with made_by("evaluate", query=sets["query"].sha256, gallery=sets["gallery"].sha256, centre_cameras=False):
            first = np.where(rng.random(queries) < quality, 1, 9).astype(float)
            table = {"row": splits["query"], "split": np.zeros(queries, int), "ap": quality, "inp": quality, "first_hit": first}
            artifacts = {"scores": write_table("scores", pa.table(table | {"num_positives": np.full(queries, 9)}))}
        metrics = {
            "mAP": float(quality.mean()),
            "mINP": float(quality.mean()),
            "rank_1": float((first == 1).mean()),
            "seconds_evaluate": 1.0,
        }
        if number:
            clusters, similarity = pids[:n] * 2 + (rng.random(n) < 0.3), rng.random(n)
            reliable = similarity > 0.5
            flags = {name: np.zeros(reliable.sum(), bool) for name in ("labelled", "unclustered")}
            chosen = {"row": np.flatnonzero(reliable), "pseudo_label": clusters[reliable], **flags}
            artifacts |= {
                "features": features("train", noise),
                "clusters": write_table("clusters", pa.table({"row": np.arange(n), "cluster": clusters, "similarity": similarity})),
                "reliable": write_table("reliable", pa.table(chosen)),
            }
            metrics |= {"reliable_set_size": float(reliable.sum()), "reliable_fraction": float(reliable.mean()), "num_clusters": n / 10}
        nested = {"mlflow.parentRunId": parent.info.run_id, "pul.kind": "iteration", "pul.iteration": str(number)}
        run = client().create_run(experiment, tags=nested)
        for name, value in metrics.items():
            client().log_metric(run.info.run_id, name, value)
        link(folder / f"iteration={number}", artifacts)
    return "drawn-00000000"


def link(folder, artifacts):
    """Link artifacts by readable names."""
    from tasks.store.artifacts import locate

    folder.mkdir(exist_ok=True)
    for name, artifact in artifacts.items():
        (folder / f"{name}.parquet").symlink_to(Path(locate(artifact)))


if __name__ == "__main__":
    main()
