"""Our figures beside those of the PyPI packages torchreid and reid, on the same features (`make peers` installs them apart from ours)."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pul_core.scoring.evaluation import summarise
from pul_core.scoring.protocols import PROTOCOLS, Protocol, Side, evaluate
from pul_core.scoring.reranking import Reranking, reranked_distances

ROOT = Path(__file__).parent.parent
ROLES, PARTS = ("query", "gallery"), ("", "_pids", "_camids")
PYTHON = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="torchreid and reid are not installed: make peers")


def sides(*, shots, junk):
    """People on three cameras with distractors, junk and, in the query, some whom nobody saw twice."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(60, 32))

    def side(pids, camids):
        features = centres[pids] + rng.normal(0, 1.3, (len(pids), 32))
        return Side(features.astype(np.float32), pids, camids)

    query = side(rng.permutation(np.arange(1, 60)), rng.integers(1, 4, 59))
    wanted = np.repeat(np.arange(1, 55), shots)
    gallery = np.concatenate((wanted, np.zeros(80 if junk else 0, np.int64), np.full(40 if junk else 0, -1)))
    return query, side(gallery, rng.integers(1, 4, len(gallery)) if junk else np.full(len(gallery), 4))


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Ask both packages about both layouts."""
    folder = tmp_path_factory.mktemp("peers")
    layouts = {"market": sides(shots=6, junk=True), "single_shot": sides(shots=1, junk=False)}
    for name, both in layouts.items():
        arrays = {f"{role}{part}": values for role, side in zip(ROLES, both, strict=True) for part, values in zip(PARTS, side, strict=True)}
        np.savez(folder / f"{name}.npz", **arrays)
    command = [PYTHON, ROOT / "tests" / "peers.py", *(folder / f"{name}.npz" for name in layouts)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {name: (*both, np.load(folder / f"{name}-found.npz")) for name, both in layouts.items()}


def test_torchreid_agrees_on_rank_k_and_map(peers):
    query, gallery, found = peers["market"]
    ours = summarise(evaluate(PROTOCOLS["market1501"], query, gallery).scores)
    assert ours.num_unscored > 0 and 0.2 < ours.mean_ap < 0.9, "a layout that can tell a difference"
    np.testing.assert_allclose(found["torchreid"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)


def test_reid_agrees_on_rank_k_map_and_minp(peers):
    query, gallery, found = peers["market"]
    ours = summarise(evaluate(PROTOCOLS["market1501"], query, gallery).scores)
    expected = 100 * np.array([*ours.cmc[[0, 4, 9]], ours.mean_ap, ours.mean_inp])
    np.testing.assert_allclose(found["reid"], np.append(expected, ours.num_scored), atol=1e-4, rtol=0)  # percent: 1e-6 of a fraction


def test_torchreids_cuhk03_rule_agrees_where_there_is_nothing_to_draw(peers):
    """It draws a gallery for each query, we one for each split; with one image an identity both have the same."""
    query, gallery, found = peers["single_shot"]
    single = Protocol(num_identities=54, single_shot=True)
    evaluation = evaluate(single, query, gallery)
    ours = summarise(evaluation.scores, evaluation.split)
    np.testing.assert_allclose(found["torchreid_cuhk03"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)


def test_torchreids_reranking_agrees(peers):
    query, gallery, found = peers["market"]
    kept = gallery.pids != -1
    ask = reranked_distances(query.features, gallery.features[kept])
    np.testing.assert_allclose(ask(np.arange(kept.sum()))(np.arange(len(query.pids))).numpy(), found["reranked"], atol=1e-5)
    ours = summarise(evaluate(PROTOCOLS["market1501"], query, gallery, reranking=Reranking()).scores)
    np.testing.assert_allclose(found["torchreid_reranked"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)
