"""Steps through ``.fn``: what they read, what they write, and that nothing but their inputs decides it."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pul_core.clustering.whitening import whiten
from pul_core.scoring.evaluation import Scores
from pul_core.selection import UnreliableError
from pul_core.settings import Clustering, Dbscan, Model, Selection
from tasks.cluster import cluster, select
from tasks.decode import decode
from tasks.evaluate import evaluate
from tasks.extract import extract_features
from tasks.index import index
from tasks.models import initial_model
from tasks.store.artifacts import column, read_table, vector_type, vectors, write_table
from tasks.store.readers import open_pixels, read_selected
from tasks.store.references import Labelled, Reliable
from tasks.store.scores import read_metrics_and_cmc, read_summary
from tasks.tracking.metrics import oracle_diagnostics, reliable_set_changes
from tasks.training import fine_tune, pretrain


@pytest.fixture
def blobs(home):
    """Features of 40 images in 4 directions, with rows that have gaps."""
    rng = np.random.default_rng(0)
    values = np.repeat(np.eye(4, 8), 10, axis=0) + rng.normal(0, 0.05, (40, 8))
    rows = np.arange(40) * 3 + 5
    return write_table("features", pa.table({"row": rows, "feature": vectors(values.astype(np.float32))}))


@pytest.fixture
def clusters_of(plan, compute):
    """A function that clusters a table of features."""

    def clusters_of(features, camids=None, centre_cameras=False, **changes):
        images = write_table("images", pa.table({"camid": pa.array([None] * 200 if camids is None else camids, pa.int64())}))
        clustering = Clustering(**{"whitening": 0} | {name: changes.pop(name) for name in ("whitening", "shrinkage") if name in changes})
        algorithm = changes.pop("algorithm", replace(plan.kmeans, num_clusters=4))
        options = {"clustering": clustering, "algorithm": replace(algorithm, **changes), "centre_cameras": centre_cameras}
        return cluster.fn(features, images, **options, seed=0, compute=compute, iteration=1)

    return clusters_of


def test_density_leaves_images_out_and_selection_takes_the_others(blobs, clusters_of, caplog):
    with caplog.at_level("INFO"):
        found = clusters_of(blobs, algorithm=Dbscan(num_neighbours=4, max_distance=0.6))
    assert "images in no cluster" in caplog.text and "passes" not in caplog.text
    table = read_table(found.clusters)
    inside = column(table, "cluster") >= 0
    assert inside.sum() > 0
    assert set(column(table, "cluster")[inside]) == set(range(found.num_clusters))
    assert (column(table, "similarity")[~inside] == -1).all()
    chosen = read_table(select.fn(found, settings=Selection(min_similarity=-1.0), iteration=1).reliable)
    assert column(chosen, "row").tolist() == column(table, "row")[inside].tolist()


def test_a_margin_reaches_the_clusters(clusters_of, home):
    """Twelve blobs that overlap: at other distances other clusters, so that some do not agree."""
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(size=(12, 6)), 6, axis=0) + rng.normal(0, 0.55, (72, 6))
    features = write_table("features", pa.table({"row": np.arange(72), "feature": vectors(values.astype(np.float32))}))
    dbscan = Dbscan(num_neighbours=5, num_averaged=2, max_distance=0.6, min_samples=2)
    everything, agreed = (clusters_of(features, algorithm=dbscan, margin=margin) for margin in (0, 0.1))
    inside = [int((column(read_table(found.clusters), "cluster") >= 0).sum()) for found in (everything, agreed)]
    assert 0 < inside[1] < inside[0]


def test_images_of_no_cluster_are_learnt_and_do_not_count(blobs, clusters_of):
    features = read_table(blobs)
    values = np.stack(column(features, "feature"))
    values[[4, 31]] = np.random.default_rng(0).normal(size=(2, 8))
    alone = write_table("features", pa.table({"row": column(features, "row"), "feature": vectors(values)}))
    dbscan = Dbscan(num_neighbours=6, num_averaged=2, max_distance=0.4, min_samples=4)
    clusters = clusters_of(alone, algorithm=dbscan)
    found = column(read_table(clusters.clusters), "cluster")
    outside = np.flatnonzero(found < 0)
    assert {4, 31} <= set(outside.tolist())
    settings = Selection(min_similarity=-1)
    without, beside = (select.fn(clusters, settings=replace(settings, keep_unclustered=keep), iteration=1) for keep in (False, True))
    assert (beside.size, beside.num_unclustered) == (without.size, len(outside))
    assert (beside.reliable.rows, beside.num_classes) == (40, without.num_classes + len(outside))
    assert read_selected(beside).equals(read_selected(without))
    truth = np.zeros(40 * 3 + 5, np.int64)
    truth[column(features, "row")] = np.arange(40) // 10 + 1
    labels = write_table("labels", pa.table({"row": np.arange(len(truth)), "pid": truth}))
    assert oracle_diagnostics(clusters, beside, labels) == oracle_diagnostics(clusters, without, labels)
    assert reliable_set_changes(without, beside)["reliable_overlap"] == 1


def test_density_looks_at_cameras_only_when_asked_to(blobs, clusters_of):
    density = {"algorithm": Dbscan(num_neighbours=4, max_distance=0.6)}
    camids = np.zeros(200, np.int64)
    camids[5:65:3] = 1  # two directions on each camera, whose nearest on the other one are strangers

    def assigned(**given):
        return column(read_table(clusters_of(blobs, **density, **given).clusters), "cluster").tolist()

    blind, aware = assigned(camids=camids, camera_aware=False), assigned(camids=camids, camera_aware=True)
    assert blind == assigned() != aware


def test_whitening_is_what_similarities_are_measured_in(blobs, clusters_of):
    values = column(read_table(blobs), "feature")
    found = clusters_of(blobs, whitening=0.7, shrinkage=0.3)
    white = whiten(values, power=0.7, shrinkage=0.3)
    white /= np.linalg.norm(white, axis=1, keepdims=True)
    table = read_table(found.clusters)
    centres = read_table(found.centres)
    centre = np.empty(4, np.int64)
    centre[column(centres, "cluster")] = (column(centres, "row") - 5) // 3
    own = (white * white[centre[column(table, "cluster")]]).sum(1)
    np.testing.assert_allclose(column(table, "similarity"), own, atol=1e-5)
    assert abs(own - column(read_table(clusters_of(blobs).clusters), "similarity")).max() > 0.01


def test_centring_cameras_needs_cameras_and_changes_clusters_only_with_them(blobs, clusters_of):
    plain = clusters_of(blobs)
    assert clusters_of(blobs, centre_cameras=True).clusters.rows == plain.clusters.rows == 40
    camids = np.zeros(200, np.int64)
    camids[5:65:3] = 1  # two directions on each camera: centred, they fall on the other camera's two
    centred = clusters_of(blobs, camids=camids, centre_cameras=True, num_clusters=2)
    sizes = column(read_table(centred.centres), "size").tolist()
    assert sizes == [20, 20]
    clusters = column(read_table(centred.clusters), "cluster")
    assert len(set(clusters[:20])) == len(set(clusters[20:])) == 2


def test_clusters_are_keyed_by_row_and_ascending(blobs, clusters_of):
    found = clusters_of(blobs)
    table, centres = read_table(found.clusters), read_table(found.centres)
    assert column(table, "row").tolist() == list(range(5, 125, 3))
    assert (np.diff(column(centres, "row")) >= 0).all()
    assert set(column(centres, "row")) <= set(column(table, "row"))
    np.testing.assert_array_equal(np.bincount(column(table, "cluster"))[column(centres, "cluster")], column(centres, "size"))
    by_row = dict(zip(column(read_table(blobs), "row"), column(read_table(blobs), "feature"), strict=True))
    for row, feature in zip(column(centres, "row"), column(centres, "feature"), strict=True):
        np.testing.assert_array_equal(feature, by_row[row])


def test_selection_agrees_with_the_table_it_read(blobs, clusters_of):
    found = clusters_of(blobs)
    chosen = read_table(select.fn(found, settings=Selection(min_similarity=0.99), iteration=1).reliable)
    table, centres = read_table(found.clusters), read_table(found.centres)
    wanted = column(table, "row")[column(table, "similarity") > np.float32(0.99)]
    assert set(column(chosen, "row")) == set(wanted) | set(column(centres, "row"))


def test_similar_classes_are_numbered_after_the_labelled_ones(clusters_of):
    """Two of the four directions are close to each other; two known people come first."""
    rng = np.random.default_rng(0)
    directions = np.eye(4, 8)
    directions[1] = directions[0] + 0.5 * directions[1]
    values = np.repeat(directions, 10, axis=0) + rng.normal(0, 0.02, (40, 8))
    values[39, 4] += 1  # far from the centre of its cluster
    features = write_table("features", pa.table({"row": np.arange(40), "feature": vectors(values.astype(np.float32))}))
    known = write_table("labelled", pa.table({"row": [90, 91, 92, 93], "class": [0, 0, 1, 1]}))
    labelled = Labelled(labelled=known, num_identities=2)
    found = clusters_of(features)
    chosen = select.fn(found, labelled, settings=Selection(min_similarity=-1, num_similar=1, similar_quantile=0), iteration=1)
    pairs, reliable = read_table(chosen.similar), read_table(chosen.reliable)
    by_row = dict(zip(column(reliable, "row"), column(reliable, "pseudo_label"), strict=True))
    assert {tuple(pair.values()) for pair in pairs.to_pylist()} >= {(by_row[0], by_row[10]), (by_row[10], by_row[0])}
    assert min(column(pairs, "pseudo_label")) >= 2
    assert select.fn(found, labelled, settings=Selection(min_similarity=-1), iteration=1).similar is None


def test_what_changed_since_the_last_reliable_set_is_recorded_without_labelled_images(home):
    def reliable(rows, classes, labelled):
        table = {
            "row": rows,
            "pseudo_label": classes,
            "similarity": np.ones(len(rows)),
            "labelled": np.array(labelled, bool),
            "unclustered": np.zeros(len(rows), bool),
        }
        return Reliable(reliable=write_table("reliable", pa.table(table)), num_classes=3, num_labelled=sum(labelled))

    before = reliable([1, 2, 3, 4, 9], [0, 0, 1, 1, 2], [0, 0, 0, 0, 1])
    after = reliable([2, 3, 4, 5, 9], [1, 0, 0, 0, 2], [0, 0, 0, 0, 1])
    assert reliable_set_changes(before, after) == {"reliable_overlap": 3 / 5, "reliable_agreement_ari": 1.0}
    alone = reliable([4, 9], [0, 1], [0, 1])
    assert reliable_set_changes(before, alone) == {"reliable_overlap": 1 / 4}


def test_a_set_too_small_to_learn_from_is_refused(blobs, clusters_of):
    with pytest.raises(UnreliableError, match="lower min_similarity"):
        select.fn(clusters_of(blobs), settings=Selection(min_similarity=1.0), iteration=1)


def test_default_number_of_clusters_is_used_when_none_is_given(blobs, clusters_of):
    assert clusters_of(blobs, num_clusters=0).num_clusters == 2


@pytest.fixture
def data(home, tiny_pair, plan):
    source, target = (index.fn(str(folder), role) for folder, role in zip(tiny_pair, ("source", "target"), strict=True))
    size = {"height": 64, "width": 32}
    pixels = {split: decode.fn(target, split=split, **size) for split in target.splits}
    return source, target, decode.fn(source, split="train", **size), pixels


@pytest.fixture
def original(data, plan, compute):
    initial = initial_model.fn(Model(backbone="test_resnet", weights="random", height=64, width=32), seed=0)
    return pretrain.fn(initial, [data[2]], [data[0].labels], settings=plan.pretraining, seed=1, compute=compute).model


def test_features_of_a_split_are_keyed_to_its_rows(data, original, compute):
    _, target, _, pixels = data
    features = read_table(extract_features.fn(original, pixels["query"], compute=compute, iteration=0, split="query"))
    splits = column(read_table(target.images), "split")
    assert column(features, "row").tolist() == np.flatnonzero(splits == "query").tolist()
    assert features.schema.field("feature").type == vector_type(96)


def test_training_repeats_to_the_byte_and_follows_the_seed(data, original, plan, compute):
    def train(seed, similar=None):
        rows = open_pixels(data[3]["train"])[0][:12]
        reliable = write_table("reliable", pa.table({"row": rows, "pseudo_label": np.arange(12) // 6, "similarity": np.ones(12)}))
        arguments = {"settings": plan.fine_tuning, "seed": seed, "compute": compute, "iteration": 1}
        return fine_tune.fn(original, data[3]["train"], Reliable(reliable=reliable, num_classes=2, similar=similar), **arguments)

    assert train(5).model.sha256 == train(5).model.sha256 != train(6).model.sha256
    similar = write_table("similar", pa.table({"pseudo_label": [0, 1], "similar": [1, 0]}))
    assert column(read_table(train(5, similar).training), "loss").tolist() == [0] * plan.fine_tuning.epochs


def test_scores_and_diagnostics(data, original, clusters_of, compute):
    _, target, _, pixels = data
    query, gallery, train = (
        extract_features.fn(original, pixels[split], compute=compute, iteration=0, split=split) for split in ("query", "gallery", "train")
    )
    scores = evaluate.fn(query, gallery, target, target.labels, compute=compute, iteration=0)
    summary = read_summary(scores)
    assert (summary.num_scored, summary.num_unscored) == (5, 0)
    assert scores.rows == 5
    pids = column(read_table(target.labels), "pid")
    rows = column(read_table(train), "row")
    truth = np.unique(pids[rows], return_inverse=True)[1]
    perfect = clusters_of(train, num_clusters=6)
    table = read_table(perfect.clusters).set_column(1, "cluster", pa.array(truth))
    reliable = write_table(
        "reliable",
        pa.table(
            {
                "row": rows,
                "pseudo_label": truth,
                "similarity": np.ones(36),
                "labelled": np.zeros(36, bool),
                "unclustered": np.zeros(36, bool),
            }
        ),
    )
    found = oracle_diagnostics(
        perfect.model_copy(update={"clusters": write_table("clusters", table)}), Reliable(reliable=reliable, num_classes=6), target.labels
    )
    assert found == {"oracle_nmi": pytest.approx(1), "oracle_reliable_purity": 1.0}


def test_scores_of_any_protocol_are_keyed_to_the_queries(data, original, compute):
    _, target, _, pixels = data
    query, gallery = (
        extract_features.fn(original, pixels[split], compute=compute, iteration=0, split=split) for split in ("query", "gallery")
    )

    def scores(images=target, **options):
        return evaluate.fn(query, gallery, images, target.labels, compute=compute, iteration=0, **options)

    halves = read_table(scores(protocol="viper", seed=3))
    rows = column(read_table(query), "row")
    assert halves.column_names == ["row", "split", *Scores._fields]
    for split in range(10):
        chosen = column(halves, "row")[column(halves, "split") == split]
        assert len(chosen) == 2 and set(chosen) <= set(rows) and (np.diff(chosen) > 0).all()
    found = read_metrics_and_cmc({"plain": scores(), "reranked": scores(rerank=True, ties="expected")}, "zero")
    assert found["plain"]["rank_1"] == found["plain"]["cmc"][0]
    assert found["plain"]["scores"] != found["reranked"]["scores"]
    with pytest.raises(ValueError, match="requires 100 identities"):
        scores(protocol="cuhk03_old")


def test_images_without_cameras_are_scored(data, original, compute):
    _, target, _, pixels = data
    query = extract_features.fn(original, pixels["query"], compute=compute, iteration=0, split="query")
    table = read_table(target.images)
    camids = pa.array([None if row % 2 else camid for row, camid in enumerate(column(table, "camid").tolist())], pa.int64())
    blind = write_table("images", table.set_column(table.schema.get_field_index("camid"), "camid", camids))
    scores = evaluate.fn(query, query, target.model_copy(update={"images": blind}), target.labels, compute=compute, iteration=0)
    known = column(read_table(query), "row") % 2 == 0
    positives = column(read_table(scores), "num_positives")
    assert positives.tolist() == [0 if seen else 1 for seen in known], "itself, unless its camera is known"
