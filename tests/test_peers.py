"""Our metrics against those of the PyPI packages torchreid and reid, on the same features (`make peers` installs them separately)."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from pul_core.scoring.evaluation import summarise
from pul_core.scoring.protocols import PROTOCOLS, FeatureSet, Protocol, score_protocol
from pul_core.scoring.reranking import Reranking, reranked_distances

ROOT = Path(__file__).parent.parent
ROLES, PARTS = ("query", "gallery"), ("", "_pids", "_camids")
PYTHON = ROOT / ".venv-peers" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="torchreid and reid are not installed: make peers")


def draw_sets(*, shots, junk):
    """Draw people on three cameras with distractors, junk and, among the queries, some without a correct match."""
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(60, 32))

    def feature_set(pids, camids):
        features = centres[pids] + rng.normal(0, 1.3, (len(pids), 32))
        return FeatureSet(features.astype(np.float32), pids, camids)

    query = feature_set(rng.permutation(np.arange(1, 60)), rng.integers(1, 4, 59))
    matchable = np.repeat(np.arange(1, 55), shots)
    gallery_pids = np.concatenate((matchable, np.zeros(80 if junk else 0, np.int64), np.full(40 if junk else 0, -1)))
    return query, feature_set(gallery_pids, rng.integers(1, 4, len(gallery_pids)) if junk else np.full(len(gallery_pids), 4))


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    """Score both data sets with both packages."""
    folder = tmp_path_factory.mktemp("peers")
    data_sets = {"market": draw_sets(shots=6, junk=True), "single_shot": draw_sets(shots=1, junk=False)}
    for name, sets in data_sets.items():
        arrays = {
            f"{role}{part}": values for role, images in zip(ROLES, sets, strict=True) for part, values in zip(PARTS, images, strict=True)
        }
        np.savez(folder / f"{name}.npz", **arrays)
    command = [PYTHON, ROOT / "tests" / "peers.py", *(folder / f"{name}.npz" for name in data_sets)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {name: (*sets, np.load(folder / f"{name}-results.npz")) for name, sets in data_sets.items()}


def test_torchreid_agrees_on_rank_k_and_map(peers):
    query, gallery, results = peers["market"]
    ours = summarise(score_protocol(PROTOCOLS["market1501"], query, gallery).scores)
    assert ours.num_unscored > 0 and 0.2 < ours.mean_ap < 0.9, "data on which different rules give different results"
    np.testing.assert_allclose(results["torchreid"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)


def test_reid_agrees_on_rank_k_map_and_minp(peers):
    query, gallery, results = peers["market"]
    ours = summarise(score_protocol(PROTOCOLS["market1501"], query, gallery).scores)
    expected = 100 * np.array([*ours.cmc[[0, 4, 9]], ours.mean_ap, ours.mean_inp])
    np.testing.assert_allclose(results["reid"], np.append(expected, ours.num_scored), atol=1e-4, rtol=0)  # percent: 1e-6 of a fraction


def test_torchreids_cuhk03_rule_agrees_on_a_single_shot_gallery(peers):
    """torchreid draws a gallery per query, we draw one per split; with one gallery image per identity both are the same."""
    query, gallery, results = peers["single_shot"]
    scored = score_protocol(Protocol(num_identities=54, single_shot=True), query, gallery)
    ours = summarise(scored.scores, scored.split)
    np.testing.assert_allclose(results["torchreid_cuhk03"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)


def test_torchreids_reranking_agrees(peers):
    query, gallery, results = peers["market"]
    not_junk = gallery.pids != -1
    distances = reranked_distances(query.features, gallery.features[not_junk])
    block = distances(np.arange(not_junk.sum()))(np.arange(len(query.pids))).numpy()
    np.testing.assert_allclose(block, results["reranked"], atol=1e-5)
    ours = summarise(score_protocol(PROTOCOLS["market1501"], query, gallery, reranking=Reranking()).scores)
    np.testing.assert_allclose(results["torchreid_reranked"], np.append(ours.cmc, ours.mean_ap), atol=1e-6)
