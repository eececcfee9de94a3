"""Commands on a finished run, with the servers of `pul up`: scores by every name of a model, refusals, and the doctor."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

PUL = Path(sys.executable).with_name("pul")


def error_line(completed):
    """Return the one line in which a failed command reports its error."""
    assert completed.returncode == 1 and "Traceback" not in completed.stderr
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("pul: ")]
    return line


def test_a_model_has_equal_scores_by_each_of_its_names(pul_at_finished_run, finished_run, tiny_pair, drawn_pair, capsys, table_of):
    name = finished_run.name
    assert pul_at_finished_run("results", name, "--json") == 0
    results = json.loads(capsys.readouterr().out)

    def printed(model, data, *options):
        code = pul_at_finished_run("evaluate", model, data, "--threads=1", *options)
        assert code == 0, code
        return capsys.readouterr().out

    def scores_of(model, *options, data=drawn_pair[1]):
        return json.loads(printed(model, data, "--json", *options))

    on_target, expected = scores_of(f"{name}/iteration=0", data=tiny_pair[1])["plain"], results["iterations"][0]
    for metric in ("rank_1", "mAP", "mINP"):
        assert on_target[metric] == expected[metric]
    first, last = scores_of(f"{name}/iteration=0")["plain"], scores_of(name, "--rerank")
    assert first["mAP"] != last["plain"]["mAP"], "another model has other scores"
    assert len(last["reranked"]["cmc"]) == 50
    assert pq.read_table(last["reranked"]["scores"]).column_names[:4] == ["row", "split", "ap", "ap_trapezoidal"]
    for model in (finished_run.home / "runs" / name / "iteration=2" / "model.safetensors", f"models:/pul {results['experiment']}/1"):
        assert scores_of(model)["plain"] == last["plain"]
    assert scores_of(name, "--ties", "optimistic")["ties"] == "optimistic"
    halves = scores_of(name, "--protocol", "viper")
    assert sorted(set(pq.read_table(halves["plain"]["scores"])["split"].to_pylist())) == list(range(10))
    text = printed(name, drawn_pair[1], "--rerank")
    titles, rows = table_of(text)
    assert titles == ["metric", "plain", "reranked"]
    assert ["rank-1", f"{100 * last['plain']['rank_1']:.1f} %", f"{100 * last['reranked']['rank_1']:.1f} %"] in rows
    assert "16 queries scored, 0 without a correct match left out" in text


def test_a_model_that_cannot_be_scored_is_reported_in_one_line(pul_at_finished_run, finished_run, tiny_pair):
    name, target = finished_run.name, tiny_pair[1]
    message = pul_at_finished_run("evaluate", f"{name}/iteration=9", target)
    assert message.startswith("pul: ") and "\n" not in message and "iteration=9" in message and "iteration=2" in message
    message = pul_at_finished_run("evaluate", name, target, "--protocol", "cuhk03_old", "--threads=1")
    assert message == "pul: the protocol requires 100 identities in both query and gallery, got 5: choose another protocol"


def test_a_finished_run_is_not_resumed_and_the_doctor_finds_nothing(pul_at_finished_run, finished_run, up, capsys):
    name = finished_run.name
    assert pul_at_finished_run("resume", name) == f"pul: run {name} is finished: pul results {name} shows its results"
    capsys.readouterr()
    assert pul_at_finished_run("doctor", "--json") == 0
    health = json.loads(capsys.readouterr().out)
    assert (health["server"], health["server_answers"]) == (f"http://127.0.0.1:{up[1][0]}/api", True)
    assert [health[problem] for problem in ("running", "lost", "unfinished_steps", "damaged")] == [[], [], [], []]


def test_a_run_that_fails_half_way_reports_why_in_one_line(finished_run, tiny_pair, tiny_options):
    """The process uses the server of `pul up`, and what the finished run has in the cache."""
    arguments = ["run", "--source", tiny_pair[0], "--target", tiny_pair[1], *tiny_options, "--set=selection.min_similarity=1"]
    done = subprocess.run([PUL, *arguments], cwd=finished_run.folder, env={}, capture_output=True, text=True, timeout=300, check=False)
    assert "lower min_similarity" in error_line(done)


def test_its_model_is_exported_embedded_and_promoted_by_the_deployment(pul_at_finished_run, finished_run, tiny_pair, tmp_path, capsys):
    """The exported weights and the run give the same features; the deployment promotes the run, which the command then sees."""
    out = tmp_path / "exported"
    assert pul_at_finished_run("export", finished_run.name, "--format", "safetensors", "--out", out, "--threads=1", "--json") == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["run"] == finished_run.name and manifest["iteration"] == 2
    assert manifest["card"]["licences"]["weights"] == manifest["files"][0]["licence"]["weights"] == "none (random weights)"
    assert manifest["card"]["scores"] and manifest["card"]["source"][0]["name"] == "source"
    features = []
    for model in (out, out / "model.safetensors", finished_run.name):
        assert pul_at_finished_run("embed", model, tiny_pair[1], "--out", tmp_path / "features.parquet", "--threads=1", "--device=cpu") == 0
        features.append(pq.read_table(tmp_path / "features.parquet"))
    assert features[0].column_names == ["path", "camera", "feature"] and features[0].num_rows == 36 + 5 + 12
    assert features[0].equals(features[1]) and features[0]["path"].equals(features[2]["path"])
    exported, of_run = (np.array(table["feature"].to_pylist()) for table in (features[0], features[2]))
    np.testing.assert_allclose(exported, of_run, rtol=0.05, atol=0.05 * np.abs(exported).max())  # a run's model may compute in bfloat16
    capsys.readouterr()
    command = [PUL.with_name("prefect"), "deployment", "run", "promote/champion", "--param", f"run={finished_run.name}", "--watch"]
    done = subprocess.run(command, cwd=finished_run.folder, env={}, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pul_at_finished_run("promote", finished_run.name) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"run {finished_run.name} is already the champion of .*: nothing was changed", line)
