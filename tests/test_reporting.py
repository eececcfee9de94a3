"""What a report shows, against slow obvious versions: ranked lists, tables of cameras, the gain's interval and the verdict."""

import numpy as np
import pytest
from scipy import stats

from pul_core.reporting.cameras import camera_links, rank_1_by_camera
from pul_core.reporting.cluster_sizes import choose_clusters, size_classes
from pul_core.reporting.feature_map import fit_axes, project, sample_positions
from pul_core.reporting.gain import Gain, paired_gain
from pul_core.reporting.ranked_lists import choose_queries, ranked_lists
from pul_core.reporting.verdict import RunFacts, judge
from pul_core.scoring.evaluation import score_queries
from pul_core.scoring.protocols import FeatureSet


@pytest.fixture
def sets():
    """Queries and a gallery with distractors, junk and an unknown camera."""
    rng = np.random.default_rng(0)

    def draw(n, lowest):
        return FeatureSet(rng.normal(size=(n, 8)).astype(np.float32), rng.integers(lowest, 12, n), rng.integers(-1, 4, n))

    return draw(30, 1), draw(5000, -1)  # more than one block of the gallery


def test_a_ranked_list_is_the_sorted_gallery_with_the_marks_of_the_protocol(sets):
    query, gallery = sets
    unit = [features / np.linalg.norm(features, axis=1, keepdims=True) for features in (query.features, gallery.features)]
    for ranked in ranked_lists(query, gallery, np.array([3, 17]), length=6):
        q = ranked.query_idx
        distance = 1 - unit[1] @ unit[0][q]
        expected = []
        for g in np.argsort(distance):
            right = gallery.pids[g] == query.pids[q]
            same_camera = gallery.camids[g] == query.camids[q] != -1
            mark = "ignored" if gallery.pids[g] == -1 or (right and same_camera) else "right" if right else "wrong"
            expected.append((g, mark))
            if sum(kind != "ignored" for _, kind in expected) == 6:
                break
        assert list(zip(ranked.gallery_idx.tolist(), ranked.marks, strict=True)) == expected


def test_the_first_right_image_of_a_list_has_the_rank_that_is_scored(sets):
    query, gallery = sets
    scores = score_queries(*query, *gallery)
    for ranked in ranked_lists(query, gallery, np.arange(len(query.pids)), length=50):
        marks = [mark for mark in ranked.marks if mark != "ignored"]
        if "right" in marks:
            assert marks.index("right") + 1 == scores.first_hit[ranked.query_idx]
        else:
            assert not scores.first_hit[ranked.query_idx] <= 50


def test_rank_1_by_camera_is_that_of_searches_in_one_camera(sets):
    query, gallery = sets
    table = rank_1_by_camera(query, gallery)
    for i, a in enumerate(table.query_camids):
        for j, b in enumerate(table.gallery_camids):
            part = (
                FeatureSet(*(values[query.camids == a] for values in query)),
                FeatureSet(*(values[gallery.camids == b] for values in gallery)),
            )
            scores = score_queries(*part[0], *part[1])
            scored = scores.num_positives > 0
            assert table.num_queries[i, j] == scored.sum()
            np.testing.assert_equal(table.rank_1[i, j], (scores.first_hit[scored] == 1).mean() if scored.any() else np.nan)


def test_links_between_cameras_are_those_of_sets():
    rng = np.random.default_rng(1)
    groups, camids = rng.integers(-1, 60, 200), rng.integers(-1, 4, 200)
    members = {group: camids[(groups == group) & (camids >= 0)] for group in range(60)}
    members = [set(cameras.tolist()) for cameras in members.values() if len(cameras) >= 2]
    links = camera_links(groups, camids)
    for i, a in enumerate(links.camids):
        assert links.groups[i].tolist() == [sum({a, b} <= cameras for cameras in members) for b in links.camids]
        assert links.crossing[i] == sum(a in cameras and len(cameras) > 1 for cameras in members)


def test_with_one_query_per_person_the_interval_is_that_of_the_paired_t_test():
    before, after = np.random.default_rng(2).uniform(size=(2, 40))
    gain = paired_gain(before, after, np.arange(40))
    interval = stats.ttest_rel(after, before).confidence_interval(0.95)
    np.testing.assert_allclose((gain.low, gain.high), interval)
    doubled = paired_gain(np.repeat(before, 2), np.repeat(after, 2), np.repeat(np.arange(40), 2))
    np.testing.assert_allclose(doubled[:3], gain[:3], err_msg="copies of a query add nothing")
    assert paired_gain(before, after, np.zeros(40, np.int64)) is None


def test_size_classes_hold_every_clustered_image_once():
    rng = np.random.default_rng(3)
    clusters, reliable = rng.geometric(0.05, 3000) - 2, rng.random(3000) < 0.5
    classes = size_classes(clusters, reliable)
    assert sum(each.reliable for each in classes) == (reliable & (clusters >= 0)).sum()
    assert sum(each.rejected for each in classes) == (~reliable & (clusters >= 0)).sum()
    assert sum(each.clusters for each in classes) == len(np.unique(clusters[clusters >= 0]))
    assert len(choose_clusters(clusters, 12)) == len(set(choose_clusters(clusters, 12))) == 12
    assert not len(choose_clusters(np.full(5, -1), 12))


def test_a_map_keeps_the_plane_in_which_the_features_vary():
    rng = np.random.default_rng(4)
    plane = np.linalg.qr(rng.normal(size=(16, 2)))[0].T
    flat = rng.normal(size=(500, 2)).astype(np.float32)
    features = (flat @ plane).astype(np.float32)
    axes = fit_axes([features[:250], features[250:]])
    assert axes.explained.sum() > 0.999
    between = [np.linalg.norm(each[:50, None] - each[None, :50], axis=2) for each in (flat, project(features, axes))]
    np.testing.assert_allclose(*between, atol=1e-3)
    assert len(set(sample_positions(10_000, 0).tolist())) == 3000


def test_no_person_fills_the_list_of_queries():
    value, pids = np.array([0.9, 0.9, 0.9, 0.1]), np.array([1, 1, 2, 3])
    assert choose_queries(value, pids, 9, largest=True, then=np.array([1, 5, 9, 0])).tolist() == [2, 1, 3]


GOOD = RunFacts("finished", "stable", 5, 900, None, True, Gain(0.1, 0.05, 0.15, 200, 50), None, None)
CROSSING = camera_links(np.repeat(np.arange(20), 3), np.tile([1, 2, 3], 20))
APART = camera_links(np.repeat(np.arange(30), 2), np.repeat([1, 1, 2], 20))
UNKNOWN = camera_links(np.repeat(np.arange(20), 3), np.full(60, -1))


@pytest.mark.parametrize(
    ("changes", "level", "text"),
    [
        ({"clusters": CROSSING}, "good", "Clusters cross all 3 cameras."),
        ({"reason": "limit"}, "caution", "max_iterations"),
        ({"reason": "stable_everything", "degenerate": "stable_everything"}, "bad", "degenerate"),
        ({"reason": "limit", "degenerate": "stable_only_centres"}, "caution", "degenerate"),
        ({"reason": None, "status": "failed"}, "bad", "its status is failed"),
        ({"reliable": None}, "bad", "only the original one"),
        ({"gain": Gain(-0.1, -0.15, -0.05, 200, 50)}, "bad", "mAP fell by 10.0 points"),
        ({"gain": Gain(0.01, -0.01, 0.03, 200, 50)}, "caution", "cannot tell the two models apart"),
        ({"scored": False, "gain": None}, "unknown", "no labelled queries"),
        ({"clusters": APART}, "bad", "of the clusters of camera 1 and 2"),
        ({"clusters": APART, "people": APART}, "unknown", "Nobody on camera 1 and 2 was seen by another camera"),
        ({"clusters": UNKNOWN}, "unknown", "cameras are unknown"),
    ],
)
def test_the_worst_finding_decides(changes, level, text):
    verdict = judge(GOOD._replace(**changes))
    assert verdict.level == level == verdict.findings[0].level
    assert any(text in finding.text for finding in verdict.findings)
    assert all(finding.advice for finding in verdict.findings if finding.level in ("unknown", "caution"))


def test_the_advice_on_cameras_names_a_setting_of_the_clustering_that_was_used():
    facts = GOOD._replace(clusters=APART)
    assert "`dbscan.max_distance`" in judge(facts._replace(by_density=True)).findings[0].advice
    assert "`modern`" in judge(facts).findings[0].advice
