"""A few labels on the target, and several sources: labelled identities, clustered images, and the classes of the softmax."""

import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pul_core.errors import DataError
from pul_core.few_labels import first_identities, join_labelled, num_unlabelled_clusters
from pul_core.settings import FewLabels, KMeans, Model, Optimisation
from tasks.cluster import cluster, select
from tasks.decode import decode
from tasks.extract import extract_features
from tasks.few_labels import reveal
from tasks.index import index
from tasks.models import initial_model
from tasks.store.artifacts import column, read_table
from tasks.training import pretrain

SHARED = Path(os.environ.get("PUL_SHARED", Path(__file__).parent.parent.parent / "shared"))
SIZE = {"height": 64, "width": 32}


@pytest.fixture
def target(home, tiny_pair):
    return index.fn(str(tiny_pair[1]), "target")


def pids_of(target, rows):
    return column(read_table(target.labels), "pid")[rows]


def test_the_first_identities_are_labelled(target):
    labelled = reveal.fn(target, settings=FewLabels(identities=2), algorithm=KMeans())
    table = read_table(labelled.labelled)
    assert labelled.num_identities == 2
    assert sorted(set(pids_of(target, column(table, "row")))) == [11, 12]
    assert column(table, "class").tolist() == [0] * 6 + [1] * 6


def test_a_share_is_a_fraction_of_the_identities(target):
    assert reveal.fn(target, settings=FewLabels(share=0.5), algorithm=KMeans()).num_identities == 3


def test_without_settings_no_label_is_read(target):
    assert reveal.fn(target.model_copy(update={"labels": None}), settings=FewLabels(), algorithm=KMeans()) is None


def test_a_list_names_files_or_identities(target, tmp_path):
    names = [Path(path).name for path in read_table(target.images).column("path").to_pylist()]
    lines = [f"{name} {'an-identity' if name.startswith('0013') else -1}" for name in names if name.startswith(("0013", "0014"))]
    (tmp_path / "by-file.list").write_text("\n".join(lines))
    (tmp_path / "by-identity.list").write_text("0013\n")
    by_file, by_identity = (
        reveal.fn(target, settings=FewLabels(file=str(tmp_path / f"{name}.list")), algorithm=KMeans())
        for name in ("by-file", "by-identity")
    )
    assert by_file.labelled.sha256 == by_identity.labelled.sha256
    assert set(pids_of(target, column(read_table(by_file.labelled), "row"))) == {13}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody.jpg 3", "labels nobody.jpg in .*, which is not a decodable training image"),
        ("0011_c1s1_000000_00.jpg 1\nx\n", "line 2"),
        ("0011_c1s1_000000_00.jpg -1", "every identity is -1"),
        ("77\n78", "names identity 77"),
        ("0011_c1s1_000000_00.jpg 1\n0011_c1s1_000000_00.jpg 2", "twice"),
    ],
)
def test_a_list_that_does_not_fit_the_data_is_an_error(target, tmp_path, text, message):
    (tmp_path / "wrong.list").write_text(text)
    with pytest.raises(DataError, match=message):
        reveal.fn(target, settings=FewLabels(file=str(tmp_path / "wrong.list")), algorithm=KMeans())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"identities": 99}, "only 6"),
        ({"identities": 6}, "leave some of them unlabelled"),
        ({"identities": 2, "share": 0.5}, "one of"),
        ({"file": "/nowhere.list"}, "nowhere.list does not exist"),
    ],
)
def test_labels_that_do_not_exist_are_an_error(target, settings, message):
    with pytest.raises(ValueError, match=message):
        reveal.fn(target, settings=FewLabels(**settings), algorithm=KMeans())


@pytest.mark.skipif(not (SHARED / "data/lists").is_dir(), reason="the authors' lists are not available")
@pytest.mark.parametrize(("name", "count"), [("Duke", 25), ("Market", 25), ("Market", 50)])
def test_the_authors_lists_label_their_first_identities(home, tmp_path, name, count):
    file = SHARED / "data/lists" / name / f"{count}train.list"
    folder = tmp_path / name / "bounding_box_train"
    folder.mkdir(parents=True)
    Image.new("RGB", (1, 1)).save(stub := io.BytesIO(), "PNG")
    for line in file.read_text().splitlines():
        (folder / line.split()[0]).write_bytes(stub.getvalue())
    labelled = reveal.fn(index.fn(str(folder.parent), "target"), settings=FewLabels(file=str(file)), algorithm=KMeans())
    assert labelled.num_identities == count
    labelled_lines = [line for line in file.read_text().splitlines() if not line.endswith(" -1")]
    assert 0 < labelled.labelled.rows == len(labelled_lines)


def test_labelled_images_are_not_clustered_and_come_first_in_the_softmax(target, plan, compute):
    pixels = decode.fn(target, split="train", **SIZE)
    model = initial_model.fn(Model(backbone="test_resnet", weights="random", **SIZE), seed=0)
    features = extract_features.fn(model, pixels, compute=compute, iteration=0, split="train")
    known = reveal.fn(target, settings=FewLabels(identities=2), algorithm=KMeans())
    rest = {"clustering": plan.clustering, "centre_cameras": False, "seed": 0, "compute": compute, "iteration": 1}
    clusters = cluster.fn(features, target.images, known, algorithm=replace(plan.kmeans, num_clusters=6), **rest)
    assert (clusters.num_clusters, clusters.clusters.rows) == (4, 24)
    reliable = select.fn(clusters, known, settings=plan.selection, iteration=1)
    table = read_table(reliable.reliable)
    labelled = column(table, "labelled")
    assert (reliable.num_labelled, labelled.sum(), reliable.size) == (12, 12, (~labelled).sum())
    assert (column(table, "pseudo_label")[labelled] < 2).all() and (column(table, "pseudo_label")[~labelled] >= 2).all()
    assert (np.diff(column(table, "row")) > 0).all()
    with pytest.raises(ValueError, match="must be larger"):
        cluster.fn(features, target.images, known, algorithm=replace(plan.kmeans, num_clusters=2), **rest)


def test_equal_identity_numbers_in_two_sources_are_different_identities(home, tmp_path, market, plan, compute):
    sets = [index.fn(str(market(tmp_path / name, range(1, 4))), "source") for name in ("a", "b")]
    pixels = [decode.fn(images, split="train", **SIZE) for images in sets]
    initial = initial_model.fn(Model(backbone="test_resnet", weights="random", **SIZE), seed=0)
    still = Optimisation(backbone_learning_rate=1e-9, classifier_learning_rate=1e-9)
    settings = replace(plan.pretraining, label_smoothing=0.0, epochs=1, optimisation=still)
    trained = pretrain.fn(initial, pixels, [images.labels for images in sets], settings=settings, seed=0, compute=compute)
    epoch = read_table(trained.training).to_pylist()[0]
    assert epoch["images"] == 36
    assert epoch["loss"] == pytest.approx(np.log(6), abs=0.05)  # an untrained softmax over six identities, not three


@given(st.lists(st.booleans(), min_size=2, max_size=30), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_joining_keeps_the_class_of_every_image(is_labelled, num_classes, num_labelled, seed):
    rng = np.random.default_rng(seed)
    known = np.array(is_labelled)
    rows = np.sort(rng.choice(1000, len(known), replace=False))
    pseudo, truth = rng.integers(0, num_classes, (~known).sum()), rng.integers(0, num_labelled, known.sum())
    joined = join_labelled(rows[~known], pseudo, num_classes, rows[known], truth, num_labelled)
    assert joined.num_classes == num_classes + num_labelled
    expected = dict(zip(rows[known].tolist(), truth.tolist(), strict=True))
    expected |= {row: label + num_labelled for row, label in zip(rows[~known].tolist(), pseudo.tolist(), strict=True)}
    assert joined.rows.tolist() == sorted(expected)
    assert dict(zip(joined.rows.tolist(), joined.classes.tolist(), strict=True)) == expected
    assert joined.labelled.tolist() == is_labelled


def test_distractors_and_junk_are_not_identities():
    assert first_identities(np.array([-1, 0, 5]), share=1.0).tolist() == [5]
    with pytest.raises(ValueError, match="larger"):
        num_unlabelled_clusters(5, 5)


def test_a_labelled_image_that_cannot_be_decoded_is_not_labelled(home, tmp_path, market):
    folder = market(tmp_path / "target", range(1, 5))
    broken = sorted((folder / "bounding_box_train").iterdir())[2]
    broken.write_bytes(broken.read_bytes()[:200])
    target = index.fn(str(folder), "target")
    known = reveal.fn(target, settings=FewLabels(identities=2), algorithm=KMeans())
    rows = column(read_table(known.labelled), "row")
    assert len(rows) == 11 and 2 not in rows


def test_k_is_checked_against_the_labelled_identities_before_anything_is_trained(target):
    with pytest.raises(ValueError, match="must be larger"):
        reveal.fn(target, settings=FewLabels(identities=3), algorithm=KMeans(num_clusters=3))
    with pytest.raises(DataError, match="only 18 training images are unlabelled"):
        reveal.fn(target, settings=FewLabels(identities=3), algorithm=KMeans(num_clusters=22))
