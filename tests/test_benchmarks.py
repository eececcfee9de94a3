"""The benchmarks at tiny sizes: every line is there, and what fails does not stop the rest. Nothing here depends on how long it takes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
PEERS = ROOT / ".venv-peers"
sys.path.append(str(BENCHMARKS))

from equality import CHECKS  # noqa: E402


def run(*command, **options):
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=500, cwd=ROOT, check=False, **options
    )


def bench(folder, *options):
    """Run speed.py at its tiny sizes on one thread; return the printed rows and the JSON."""
    out = folder / "bench.json"
    done = run(BENCHMARKS / "speed.py", "--quick", "--threads", 1, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    return lines[2:], json.loads(out.read_text())


def test_every_line_is_printed_without_the_peers(tmp_path):
    rows, results = bench(tmp_path, "--peers", tmp_path / "none")
    titles = ["training", "extraction", "training", "training", "training", "training", "k-means", "k-means"]
    titles += ["neighbours + Jaccard + DBSCAN", "scoring", "scoring", "re-ranking"]
    assert [row[0].split(",")[0] for row in rows] == titles
    missing = [row[0].split(",")[0] for row in rows if row[7] == "not installed: make peers"]
    assert missing == ["k-means", "scoring", "scoring", "re-ranking"]
    busy = [row for row in rows if "passive waiting" in row[0]]
    assert all(row[5] == "-" and "not measured" in row[7] for row in busy), "it needs two threads"
    assert {"date", "cpu", "threads", "versions", "quick"} <= results.keys()
    for key in ("mobilenetv2_100_64x32_training", "mobilenetv2_100_64x32_extraction", "mobilenetv2_100_64x32_flushing"):
        ours, peer = results[f"{key}_images_per_second"], results[f"{key}_peer_images_per_second"]
        assert results[f"{key}_ratio"] == pytest.approx(ours / peer, rel=0.02)
    assert results["kmeans_scikit_learn_ratio"] == pytest.approx(
        results["kmeans_scikit_learn_peer_seconds"] / results["kmeans_scikit_learn_seconds"], rel=0.3
    ), "in seconds, of which fewer are better; they are rounded to milliseconds"
    assert "adjusted Rand index 1.000" in results["density_dense_note"], "the dense way finds the same clusters"
    denormal = results["mobilenetv2_100_64x32_flushing_note"].split()
    assert int(denormal[0].replace(",", "")) > 10_000, "the model has the denormal weights that training leaves"


@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed: make peers")
def test_the_peers_have_the_same_results(tmp_path):
    rows, results = bench(tmp_path, "--only", "kmeans", "scoring", "reranking")
    assert [row[3].split()[0] for row in rows] == ["scikit-learn", "faiss", "torchreid", "reid", "torchreid"]
    for peer in ("torchreid", "reid"):
        ours, theirs = (text.split()[-1] for text in results[f"scoring_{peer}_note"].split(","))
        assert ours == theirs
    assert float(results["reranking_torchreid_note"].split()[-1]) < 1e-5
    ours, theirs = (float(text.split()[-1]) for text in results["kmeans_faiss_note"].split(", "))
    assert ours < 1.1 * theirs


def test_every_part_of_the_gpu_benchmark_reports_a_result_on_the_cpu(tmp_path):
    done = run(BENCHMARKS / "gpu.py", "--device", "cpu", "--tiny", "--out", tmp_path / "gpu", "--budget", 5)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads((tmp_path / "gpu.json").read_text())["lines"]
    parts = {part: [line for line in lines if line["part"] == part] for part in ("equality", "determinism", "learning")}
    assert [line["what"] for line in parts["equality"]] == list(CHECKS)
    assert all(line["status"] == "equal" and line["value"] == 0 for line in parts["equality"]), "the CPU equals itself"
    assert parts["determinism"][0]["value"] == 0
    assert len(parts["learning"]) == 4
    for part, what in (("density", "neighbours + Jaccard + DBSCAN"), ("kmeans", "k-means"), ("scoring", "scoring, 40 queries")):
        assert [line["what"] for line in lines if line["part"] == part] == [f"{what}, 300", f"{what}, 600"]
        assert all(line["value"] > 0 and "GB process" in line["memory"] for line in lines if line["part"] == part)
    steps = {line["what"] for line in lines if line["part"] == "loop"}
    assert {f"loop, {step}" for step in ("training", "extraction", "clustering", "selection", "scoring", "all")} <= steps
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("\n| ") == len(lines) + 1 and "not run on a GPU" in table


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_tells_other_results_apart(name):
    check = CHECKS[name]
    assert check.difference(check.run("cpu", 0), check.run("cpu", 1)) > check.tolerance


BROKEN_PARTS = """
import os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import gpu

def raises(device, scale, budget):
    yield gpu.Line("before", 1.0, "s", "measured")
    raise ValueError("no such thing")

def dies(device, scale, budget):
    yield gpu.Line("before", 1.0, "s", "measured")
    os._exit(3)

def hangs(device, scale, budget):
    yield gpu.Line("before", 1.0, "s", "measured")
    time.sleep(600)

def works(device, scale, budget):
    def prepare(n):
        return lambda: time.sleep(0.1) or "slept"
    yield from gpu.measure_sizes("sleep", prepare, 9, device, scale, budget)

gpu.PARTS = {part.__name__: (part, 3) for part in (raises, dies, hangs, works)}
sys.exit(gpu.main())
"""


def test_a_part_that_fails_dies_or_hangs_does_not_stop_the_others(tmp_path):
    done = run("-c", BROKEN_PARTS, BENCHMARKS, "--device", "cpu", "--tiny", "--out", tmp_path / "gpu")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [(line["part"], line["what"], line["status"]) for line in json.loads((tmp_path / "gpu.json").read_text())["lines"]]
    assert lines[:6] == [
        ("raises", "before", "measured"),
        ("raises", "raises", "FAILED: ValueError: no such thing"),
        ("dies", "before", "measured"),
        ("dies", "dies", "FAILED: the process ended with exit code 3"),
        ("hangs", "before", "measured"),
        ("hangs", "hangs", "not finished: stopped after 3 s"),
    ]
    assert lines[6] == ("works", "sleep, 300", "measured: slept")
    assert lines[7][:2] == ("works", "sleep, 600") and lines[7][2].startswith("not run: about 5"), "0.1 s times 2 to the 9th"
    assert len(lines) == 8
