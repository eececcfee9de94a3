"""Suggestions for K and epsilon: the curve against a plain DBSCAN on all pairs, reading of given curves, the step, and the command."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from deployments.suggest_cli import _suggestion_text
from pul_core.clustering.centring import centre_by_camera
from pul_core.clustering.density import cluster_by_density, jaccard_distances_below
from pul_core.clustering.suggestion import MAX_DISTANCES, MIN_IMAGES, Curve, NothingToSuggestError, clusters_by_distance, read_curve
from pul_core.settings import Dbscan
from tasks.store.artifacts import locate, read_table, vectors, write_table
from tasks.suggest import read_suggestion, suggest

MODERN = {"num_neighbours": 10, "num_averaged": 4, "min_samples": 2}
seeds = st.integers(0, 2**31 - 1)


def people(seed, n=60, persons=9, cameras=3, d=8):
    """Draw features of people; every camera shifts them by a vector of its own."""
    rng = np.random.default_rng(seed)
    camids = rng.integers(cameras, size=n)
    values = rng.normal(size=(persons, d))[np.arange(n) % persons] + rng.normal(0, 0.5, (cameras, d))[camids]
    return (values + rng.normal(0, 0.3, (n, d))).astype(np.float32), camids


def all_pairs(features, camids, k, averaged):
    """Compute the Jaccard distance of every pair with Python sets; it is camera-aware with two cameras or more."""
    n = len(features)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    squared = ((unit[:, None] - unit[None]) ** 2).sum(2)
    by_camera = len(set(camids.tolist())) > 1

    def nearest(i, same_camera):
        return sorted(
            (j for j in range(n) if not by_camera or (camids[j] == camids[i]) == same_camera), key=lambda j: (j != i, squared[i, j])
        )

    same = [nearest(i, True) for i in range(n)]
    others = [nearest(i, False) if by_camera else [] for i in range(n)]
    sizes = (
        {"wide": (round(0.4 * k), k), "narrow": (round(0.4 * k) // 2, k // 2)}
        if by_camera
        else {"wide": (k, 0), "narrow": (round(k / 2), 0)}
    )

    def reciprocal(i, size):
        num_same, num_others = sizes[size]
        on_same = {j for j in same[i][: num_same + 1] if i in same[j][: num_same + 1]}
        return on_same | {j for j in others[i][:num_others] if i in others[j][:num_others]}

    encoding = np.zeros((n, n))
    for i in range(n):
        wide = reciprocal(i, "wide")
        members = set(wide)
        for j in wide:
            narrow = reciprocal(j, "narrow")
            if len(narrow & wide) > 2 / 3 * len(narrow):
                members |= narrow
        encoding[i, list(members)] = np.exp(-squared[i, list(members)])
        encoding[i] /= encoding[i].sum()
    half = averaged // 2 if by_camera else 0
    encoding = np.array([encoding[same[i][: averaged - half] + others[i][:half]].mean(0) for i in range(n)])
    shared = np.array([np.minimum(row, encoding).sum(1) for row in encoding])
    return 1 - shared / (2 - shared)


def plain_dbscan(distance, epsilon, min_samples):
    """Run DBSCAN as described by Ester et al. 1996: grow each cluster from a core point that is in no cluster yet."""
    near = distance <= epsilon
    core = near.sum(1) >= min_samples
    labels = np.full(len(distance), -1)
    clusters = 0
    for start in np.flatnonzero(core):
        if labels[start] >= 0:
            continue
        stack = [start]
        while stack:
            i = stack.pop()
            if labels[i] < 0:
                labels[i] = clusters
                stack += np.flatnonzero(near[i]).tolist() if core[i] else []
        clusters += 1
    return labels


def plain_curve(distance, min_samples):
    points = []
    for epsilon in MAX_DISTANCES:
        labels = plain_dbscan(distance, epsilon, min_samples)
        sizes = [size for size in np.bincount(labels[labels >= 0], minlength=1).tolist() if size >= 2]
        points.append((epsilon, len(sizes), sum(sizes) / len(distance), max(sizes, default=0)))
    return points


def curve_of(counts, distances=MAX_DISTANCES):
    counts = np.array(counts)
    return Curve(np.array(distances[: len(counts)]), counts, np.ones(len(counts)), np.full(len(counts), 2))


@settings(max_examples=10, deadline=None)
@given(seed=seeds, cameras=st.sampled_from([1, 3]), samples=st.sampled_from([1, 2, 4]))
def test_the_curve_equals_a_plain_dbscan_on_all_pairs_at_each_distance(seed, cameras, samples):
    features, camids = people(seed, n=45, cameras=cameras)
    distance = all_pairs(features, camids, 6, 2)
    assume(min(np.abs(distance - limit).min() for limit in MAX_DISTANCES) > 1e-5)  # rounding must not decide
    curve = clusters_by_distance(features, camids, num_neighbours=6, num_averaged=2, min_samples=samples)
    assert list(zip(*(column.tolist() for column in curve), strict=True)) == plain_curve(distance, samples)


@pytest.mark.parametrize("cameras", [1, 3])
def test_each_point_equals_clustering_by_density(cameras):
    features, camids = people(4, cameras=cameras)
    curve = clusters_by_distance(features, camids, **MODERN)
    for point in zip(*curve, strict=True):
        cluster = cluster_by_density(features, camids, Dbscan(max_distance=float(point[0]), **MODERN)).cluster
        sizes = np.bincount(cluster[cluster >= 0])
        assert point[1:] == (len(sizes), (cluster >= 0).mean(), sizes.max(initial=0))


def test_the_size_of_the_distances_grows_with_images_not_with_pairs():
    sizes = []
    for n in (300, 600):
        features, camids = people(5, n=n, persons=n // 6)
        sizes.append(jaccard_distances_below(features, camids, num_neighbours=10, num_averaged=4, max_distance=0.7).nnz / n)
    assert sizes[1] < 1.3 * sizes[0]


@pytest.mark.parametrize(
    ("first", "counts", "epsilon", "clusters", "at"),
    [
        (0.40, [242, 246, 247, 241, 186, 105], 0.40, 241, 0.55),  # measured when the rules were chosen
        (0.35, [222, 268, 227, 204, 182, 136], 0.40, 182, 0.55),
        (0.35, [224, 248, 237, 205, 180, 120], 0.40, 180, 0.55),
        (0.20, [0, 10, 95, 100, 80, 64, 51], 0.30, 64, 0.45),  # a fall by exactly a fifth does not count; 95 of 100 is enough
        (0.20, [94, 100, 79], 0.25, 100, 0.25),
        (0.20, [1, 2, 3], 0.30, 3, 0.30),  # the curve ends before anything merges
        (0.20, [7, 7, 7], 0.20, 7, 0.30),
        (0.20, [50, 2, 50, 40, 3], 0.20, 50, 0.20),  # the first of two maxima
        (0.20, [2, 1, 0], 0.20, 2, 0.20),
        (0.20, [5], 0.20, 5, 0.20),
    ],
)
def test_epsilon_and_k_of_given_curves(first, counts, epsilon, clusters, at):
    distances = [round(first + 0.05 * step, 2) for step in range(len(counts))]
    assert read_curve(curve_of(counts, distances)) == (epsilon, clusters, at)


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=len(MAX_DISTANCES)), times=st.integers(1, 9))
@example(counts=[20, 19, 20, 16, 16, 13], times=1)
def test_properties_of_every_suggestion(counts, times):
    assume(max(counts) >= 2)
    suggestion = read_curve(curve_of(counts))
    first, last = MAX_DISTANCES.index(suggestion.max_distance), MAX_DISTANCES.index(suggestion.num_clusters_at)
    peak = counts.index(max(counts))
    assert first <= peak <= last
    assert counts[first] >= 0.95 * max(counts) - 1e-9 and all(count < 0.95 * max(counts) for count in counts[:first])
    assert suggestion.num_clusters == counts[last] and 2 <= counts[last] <= max(counts)
    assert all(counts[step + 1] >= 0.8 * counts[step] - 1e-9 for step in range(peak, last))
    assert last == len(counts) - 1 or counts[last + 1] < 0.8 * counts[last]
    scaled = read_curve(curve_of([times * count for count in counts]))
    assert scaled == (suggestion.max_distance, times * suggestion.num_clusters, suggestion.num_clusters_at)


def test_curves_without_two_clusters_are_an_error():
    with pytest.raises(NothingToSuggestError, match=r"no two images are within 0\.3 of each other"):
        read_curve(curve_of([0, 0, 0]))
    with pytest.raises(NothingToSuggestError, match="too few images, or the model does not distinguish them"):
        read_curve(curve_of([0, 1, 1]))


def test_too_few_images_are_refused_and_ten_are_not():
    features, camids = people(0, n=MIN_IMAGES, persons=2)
    with pytest.raises(NothingToSuggestError, match="9 images: at least 10 are needed"):
        clusters_by_distance(features[1:], camids[1:], **MODERN)
    assert len(clusters_by_distance(features, camids, **MODERN).num_clusters) == len(MAX_DISTANCES)


@pytest.mark.parametrize(
    "camids", [np.full(40, -1), np.zeros(40, int), np.arange(40) % 2, np.arange(40)], ids=["none", "one", "two", "each"]
)
def test_identical_features_are_an_error(camids):
    identical = centre_by_camera(np.ones((40, 8), np.float32), camids)
    with pytest.raises(NothingToSuggestError, match="all features are identical"):
        clusters_by_distance(identical, camids, **MODERN)


def test_one_person_is_one_cluster_at_the_largest_distance():
    features, _ = people(6, n=12, persons=1, cameras=1)
    curve = clusters_by_distance(features, np.zeros(12, int), **MODERN)
    assert curve.num_clusters.tolist()[-1] == 1 and curve.largest.tolist()[-1] == 12


def test_features_that_are_not_finite_are_refused():
    features, camids = people(1)
    features[3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        clusters_by_distance(features, camids, **MODERN)


def write_tables(features, camids):
    """Write a table of features whose rows have gaps, and the table of their images."""
    rows = np.arange(len(features)) * 2 + 1
    all_camids = np.full(2 * len(features) + 1, None)
    if camids is not None:
        all_camids[rows] = camids
    images = write_table("images", pa.table({"camid": pa.array(all_camids.tolist(), pa.int64())}))
    return write_table("features", pa.table({"row": rows, "feature": vectors(features)})), images


@pytest.mark.parametrize("cameras", [None, 1, 3], ids=["no cameras", "one camera", "three cameras"])
def test_the_step_centres_cameras_and_writes_the_curve(home, compute, cameras):
    features, camids = people(2, n=90, cameras=cameras or 3)
    curve = suggest.fn(*write_tables(features, camids if cameras else None), **MODERN, centre_cameras=True, compute=compute)
    camids = camids if cameras else np.full(90, -1)
    expected = clusters_by_distance(centre_by_camera(features, camids), camids, **MODERN)
    table = read_table(curve)
    assert (curve.kind, table.column_names) == ("curve", ["max_distance", "num_clusters", "clustered", "largest"])
    assert table.to_pydict() == {name: values.tolist() for name, values in expected._asdict().items()}
    assert json.loads(table.schema.metadata[b"pul.provenance"])["step"] == "suggest"
    suggestion = json.loads(json.dumps(read_suggestion(curve)))
    assert [suggestion.pop(name) for name in ("max_distance", "num_clusters", "num_clusters_at")] == list(read_curve(expected))
    assert suggestion == {"curve": table.to_pylist()}


def test_a_step_without_a_cluster_still_writes_its_curve(home, compute):
    features, camids = people(3, n=40)
    curve = suggest.fn(*write_tables(features, camids), **MODERN | {"min_samples": 41}, centre_cameras=True, compute=compute)
    assert read_table(curve)["num_clusters"].to_pylist() == [0] * len(MAX_DISTANCES)
    with pytest.raises(NothingToSuggestError, match="no cluster"):
        read_suggestion(curve)


def test_the_table_marks_the_suggestion_and_shows_the_options_to_pass():
    points = [(0.35, 222, 0.5, 9), (0.4, 1268, 0.875, 12), (0.45, 1100, 1.0, 1300)]
    names = ("max_distance", "num_clusters", "clustered", "largest")
    found = {"model": "m", "data": "d", "max_distance": 0.4, "num_clusters": 1100, "num_clusters_at": 0.45}
    assert _suggestion_text(found | {"curve": [dict(zip(names, point, strict=True)) for point in points]}).splitlines() == [
        "distance | clusters | clustered | largest | suggested",
        "---------+----------+-----------+---------+--------------------",
        "    0.35 |      222 |    50.0 % |       9 |",
        "    0.40 |    1,268 |    87.5 % |      12 | <- max_distance 0.4",
        "    0.45 |    1,100 |   100.0 % |   1,300 | <- K = 1100",
        "k-means (recipes paper and released-code): --num-clusters 1100",
        "DBSCAN, if features are not whitened: --set dbscan.max_distance=0.4 --set statistics.whitening=0",
        "The rule reads no labels: on the three data sets on which it was chosen, K was off by about a fifth (docs/method.md).",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_suggestion_is_a_marked_table_or_json_or_an_error(pul_here, home, model, market, tmp_path, capsys):
    arguments = ("suggest", locate(model), market(tmp_path / "crops", range(1, 31)), "--threads=1")
    assert pul_here(*arguments, "--json") == 0
    suggestion = json.loads(capsys.readouterr().out)
    assert list(suggestion) == ["model", "data", "max_distance", "num_clusters", "num_clusters_at", "curve"]
    assert [point["max_distance"] for point in suggestion["curve"]] == list(MAX_DISTANCES)
    assert 2 <= suggestion["num_clusters"] <= 90
    assert pul_here(*arguments) == 0
    text = capsys.readouterr().out
    assert text.count("<-") in (1, 2) and f"--num-clusters {suggestion['num_clusters']}" in text
    assert len(list(home.glob("artifacts/curve/*.parquet"))) == 1
    identical = tmp_path / "identical"
    identical.mkdir()
    image = next((tmp_path / "crops").rglob("*.jpg"))
    for number in range(12):
        shutil.copy(image, identical / f"{number}.jpg")
    message = pul_here("suggest", locate(model), identical, "--threads=1")
    assert message.startswith("pul: there is nothing to suggest") and "\n" not in message
