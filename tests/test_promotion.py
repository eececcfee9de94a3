"""Candidate and champion: the aliases that finished runs and people move, with the comparison on the same data."""

import json
import re
import shutil

import pandas as pd
import pytest

from tasks.tracking.client import client

pytestmark = pytest.mark.slow


@pytest.fixture
def run(pul_here, prefect_server, tiny_options, capsys):
    """A function that runs `pul run` and returns the id of the run."""

    def start(source, target, *options):
        assert pul_here("run", "--source", source, "--target", target, *tiny_options, "--set=selection.min_similarity=-1", *options) == 0
        capsys.readouterr()
        assert pul_here("results", "--json") == 0
        return json.loads(capsys.readouterr().out)

    return start


def aliases():
    (model,) = client().search_registered_models()
    return {alias: client().get_model_version(model.name, version).tags["pul.run"] for alias, version in model.aliases.items()}


def test_a_person_promotes_and_a_worse_model_requires_a_reason(run, pul_here, drawn_pair, capsys, tmp_path):
    source, target = drawn_pair
    target = shutil.copytree(target, tmp_path / "target")
    results = [run(source, target, "--seed", seed, f"--set=stopping.max_iterations={count}") for seed, count in ((0, 2), (1, 1))]
    assert aliases() == {"candidate": results[1]["run"]}, "a run never promotes itself"
    worse, better = sorted(results, key=lambda result: result["iterations"][-1]["mAP"])
    worse_map, better_map = (result["iterations"][-1]["mAP"] for result in (worse, better))
    assert worse_map < better_map, "the two models must have different scores"

    def promote(*arguments):
        code = pul_here("promote", *arguments)
        return code, capsys.readouterr().out

    code, text = promote(better["run"])
    assert code == 0 and "is now the champion" in text and aliases()["champion"] == better["run"]
    refusal, _ = promote(worse["run"])
    assert f"mAP is {100 * worse_map:.1f} %, that of the champion {100 * better_map:.1f} %" in refusal and "--reason" in refusal
    assert aliases()["champion"] == better["run"]
    code, text = promote(worse["run"], "--reason", "a trial", "--json")
    assert code == 0 and aliases() == {"candidate": results[1]["run"], "champion": worse["run"]}
    compared = json.loads(text)
    assert (compared["candidate"]["mAP"], compared["champion_before"]["mAP"]) == (worse_map, better_map)
    (model,) = client().search_registered_models()
    version = client().get_model_version_by_alias(model.name, "champion")
    assert version.tags["pul.promotion_reason"] == "a trial"
    assert f"run {worse['run']}" in model.description and "## Limits" in version.description
    assert "| initial weights | none (random weights) |" in version.description
    code, text = promote(worse["run"], "--reason", "another")
    assert code == 0 and re.fullmatch(rf"run {worse['run']} is already the champion of .*, version 1: nothing was changed\n", text), text
    assert client().get_model_version_by_alias(model.name, "champion").tags["pul.promotion_reason"] == "a trial"

    # The target changes: scores of runs before and after are on different images, so both models are scored on those there are now.
    next(iter(sorted((target / "query").iterdir()))).unlink()
    changed = run(source, target, "--seed", 2, "--set=stopping.max_iterations=1")
    code, text = promote(changed["run"], "--reason", "new images", "--json")
    compared = json.loads(text)
    assert code == 0 and aliases()["champion"] == changed["run"]
    assert compared["candidate"]["mAP"] == changed["iterations"][-1]["mAP"]
    assert pul_here("evaluate", worse["run"], target, "--threads=1", "--json") == 0
    assert compared["champion_before"]["mAP"] == json.loads(capsys.readouterr().out)["plain"]["mAP"]
    assert pd.notna(compared["champion_before"]["mAP"]) and compared["champion_before"]["mAP"] != worse_map
