"""Deletion on request removes all data derived from a person's images, and nothing from another data set."""

import hashlib

import pytest

from pul_core.settings import FewLabels, KMeans
from tasks.cameras import group_by_style
from tasks.decode import decode
from tasks.few_labels import reveal
from tasks.index import index
from tasks.operations import purge
from tasks.store.artifacts import locate


@pytest.fixture
def no_open_runs(monkeypatch):
    monkeypatch.setattr(purge, "running_runs", list)


def test_labels_are_deleted_with_their_own_images_only(home, tmp_path, market, no_open_runs):
    sets = [index.fn(str(market(tmp_path / name, pids)), name) for name, pids in (("ours", range(1, 7)), ("theirs", range(11, 17)))]
    labelled = [reveal.fn(images, settings=FewLabels(identities=2), algorithm=KMeans()).labelled for images in sets]
    assert sets[0].labels.rows == sets[1].labels.rows, "the labels of the two sets differ in their provenance only"
    paths = [[locate(artifact) for artifact in (images.images, images.labels, few)] for images, few in zip(sets, labelled, strict=True)]
    image = next((tmp_path / "ours").rglob("*.jpg"))
    done = purge.purge_images({hashlib.sha256(image.read_bytes()).hexdigest()})
    assert {str(path) for path in done.removed} >= set(paths[0])
    assert not {str(path) for path in done.removed} & set(paths[1])
    assert done.remaining == []


def test_equal_labels_of_different_images_are_different_artifacts(home, tmp_path, market):
    first = index.fn(str(market(tmp_path / "first", range(1, 4))), "first")
    second = index.fn(str(market(tmp_path / "second", range(1, 4), shots=3)), "second")
    assert first.labels == second.labels, "an equal data set in another folder"
    image = next((tmp_path / "second").rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"\0")
    assert index.fn(str(tmp_path / "second"), "second").labels != first.labels


def test_the_exports_of_a_run_are_deleted_with_it(home, tmp_path, no_open_runs, tracking):
    for name in ("one", "other"):
        for folder in ("runs", "exports"):
            (home / folder / name).mkdir(parents=True)
        (home / "exports" / name / "model.onnx").touch()
    assert home / "exports" / "one" / "model.onnx" in purge.purge_run("one").removed
    assert not (home / "exports" / "one").exists() and (home / "exports" / "other" / "model.onnx").exists()


def test_style_groups_are_deleted_with_an_image_that_was_grouped(home, model, tiny_pair, compute, tmp_path, market, no_open_runs, tracking):
    images = index.fn(str(market(tmp_path / "ours", range(1, 7))), "target")
    pixels = decode.fn(images, split="train", height=64, width=32)
    groups = group_by_style.fn(model, pixels, images.images, num_groups=2, seed=0, compute=compute)
    image = next((tmp_path / "ours" / "bounding_box_train").rglob("*.jpg"))
    done = purge.purge_images({hashlib.sha256(image.read_bytes()).hexdigest()})
    assert locate(groups) in {str(path) for path in done.removed} and done.remaining == []
