"""The report's words and pictures of clusters, by whether a threshold rejects images and whether some are in no cluster."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tasks.report.clusters import MAX_PICTURES, clusters
from tasks.report.feature_map import feature_map
from tasks.report.iterations import reliable_set
from tasks.report.pictures import Thumbnails
from tasks.report.run_data import RunData
from tasks.store.artifacts import vectors, write_table

NUM_IMAGES = 90


@pytest.fixture
def thumbnails(tmp_path):
    """Pictures of one colour each."""
    paths, digests = [], []
    for number in range(NUM_IMAGES):
        file = io.BytesIO()
        Image.new("RGB", (8, 16), (number * 2, 255 - number * 2, 40)).save(file, "PNG")
        (tmp_path / f"{number}.png").write_bytes(file.getvalue())
        paths.append(f"{number}.png")
        digests.append(hashlib.sha256(file.getvalue()).hexdigest())
    return Thumbnails(str(tmp_path), paths, digests)


def draw_run(clusters, similarity, selected, *, min_similarity):
    """Return a run with one iteration whose clusters and selection are given."""
    rng = np.random.default_rng(0)
    rows = np.arange(NUM_IMAGES)
    chosen = rows[selected]
    flags = {"labelled": np.zeros(len(chosen), bool), "unclustered": clusters[chosen] < 0}
    features = vectors(rng.normal(size=(NUM_IMAGES, 4)).astype(np.float32))
    tables = {
        "features": {"row": rows, "feature": features},
        "clusters": {"row": rows, "cluster": clusters, "similarity": similarity},
        "reliable": {"row": chosen, "pseudo_label": clusters[chosen], **flags},
    }
    artifacts = {kind: write_table(kind, pa.table(columns)).uri for kind, columns in tables.items()}
    return RunData(
        id="drawn",
        mlflow_run_id="",
        experiment_id="",
        experiment="",
        flow_run_id=None,
        status="finished",
        stop_reason="stable",
        recipe="",
        commit=None,
        started=0,
        parameters={"selection": {"min_similarity": min_similarity}},
        resolved=[],
        metrics=[{}, {}],
        files={},
        iterations={0: {}, 1: artifacts},
        images=pa.table({"path": [f"{row}.png" for row in rows], "camera": pa.nulls(NUM_IMAGES, pa.string()), "camid": rows % 3 + 1}),
        camids=rows % 3 + 1,
        pids=None,
    )


def sheets(section):
    """Return the sheets of pictures by their heading."""
    return {heading: groups for heading, groups in section.groups if groups}


def test_where_a_threshold_selects_each_cluster_shows_reliable_and_rejected_images_apart(home, thumbnails):
    number, similarity = np.arange(NUM_IMAGES) % 6, np.linspace(0, 1, NUM_IMAGES)
    run = draw_run(number, similarity, similarity > 0.6, min_similarity=0.6)
    section = clusters(run, thumbnails)
    assert "in no cluster" not in repr(section), "k-means puts every image in a cluster"
    (groups,) = sheets(section).values()
    for group in groups:
        reliable, rejected = group.strips
        assert (reliable.title, rejected.title) == ("reliable: 6 images", "rejected: 9 images")
    assert {"reliable", "rejected"} <= set(section.tables[0].titles)
    assert {"reliable", "rejected"} <= set(section.charts[1].table.titles)
    assert "rejected" in repr(feature_map(run).charts[0].spec)


def test_without_a_threshold_nothing_is_called_rejected_and_images_in_no_cluster_have_a_sheet(home, thumbnails):
    number = np.arange(NUM_IMAGES) % 5 - 1  # a fifth in no cluster: 0, 5, 10, ...
    run = draw_run(number, np.full(NUM_IMAGES, 0.8), number >= 0, min_similarity=-1)
    section = clusters(run, thumbnails)
    assert "rejected" not in repr(section) and "rejected" not in repr(feature_map(run))
    assert "18 of the 90 training images (20.0\N{NO-BREAK SPACE}%) are in no cluster, and they are not reliable." in section.lead
    (sheet,) = sheets(section)["Images in no cluster"]
    assert sheet.title == "12 of 18 images, spread evenly over the data set" and len(sheet.strips) == 1
    pictures = sheet.strips[0].pictures
    in_none = {thumbnails.uri(row): row for row in range(0, NUM_IMAGES, 5)}
    rows = [in_none[picture.uri] for picture in pictures]  # each shows an image in no cluster
    assert rows == sorted(set(rows)) and len(rows) == MAX_PICTURES and rows[0] == 0 and rows[-1] == 85
    assert [picture.caption for picture in pictures] == [f"camera {row % 3 + 1}" for row in rows]
    assert clusters(run, thumbnails) == section, "the same images each time"
    assert sheets(clusters(run, None)) == {}, "without pictures there is no sheet"


def test_style_groups_are_shown_where_no_camera_is_known(home, thumbnails):
    number = np.arange(NUM_IMAGES) % 5
    run = draw_run(number, np.full(NUM_IMAGES, 0.8), number >= 0, min_similarity=-1)
    titles = clusters(run, thumbnails).tables[0].titles
    column, groups = titles.index("cameras"), -1 - run.camids
    unknown = replace(run, camids=np.full(NUM_IMAGES, -1))
    section = clusters(unknown, thumbnails)
    assert section.tables[0].rows[0][column] == "–", "unknown cameras are not one camera"
    assert "camera unknown" in repr(section)

    grouped = write_table("cameras", pa.table({"camid": groups})).uri
    iterations = {0: {"cameras": grouped}, 1: run.iterations[1]}
    section = clusters(replace(unknown, iterations=iterations), thumbnails)
    assert section.tables[0].titles[column] == "style groups" and section.tables[0].rows[0][column] == "3"
    assert "style group 1" in repr(section) and "camera" not in repr(section)
    spec = repr(feature_map(replace(unknown, iterations=iterations)).charts[0].spec)
    assert "style group 3" in spec and "camera 3" not in spec and "'title': 'style group'" in spec
    assert clusters(replace(run, iterations=iterations), thumbnails).tables[0].titles == titles, "the loop ignored known cameras"


def test_one_iteration_is_not_compared_with_itself(home):
    run = draw_run(np.zeros(NUM_IMAGES, int), np.ones(NUM_IMAGES), np.ones(NUM_IMAGES, bool), min_similarity=-1)
    metrics = {"reliable_set_size": 45, "reliable_fraction": 0.5, "num_clusters": 3}
    texts = [reliable_set(replace(run, metrics=[{}, *[metrics] * number])).charts[0].description for number in (1, 2)]
    only = "45 images are reliable in iteration 1, 50.0\N{NO-BREAK SPACE}% of all."
    assert texts == [only, only.replace("iteration 1", "iteration 2")[:-1] + "; 45 were in iteration 1."]


def test_a_cluster_has_the_cameras_that_are_known(home, thumbnails):
    number = np.arange(NUM_IMAGES) % 5
    run = draw_run(number, np.full(NUM_IMAGES, 0.8), number >= 0, min_similarity=-1)
    table = clusters(replace(run, camids=np.where(run.camids == 3, -1, run.camids)), thumbnails).tables[0]
    assert [row[table.titles.index("cameras")] for row in table.rows] == ["2"] * 5


def test_few_images_in_no_cluster_are_all_shown(home, thumbnails):
    number = np.where(np.arange(NUM_IMAGES) < 3, -1, np.arange(NUM_IMAGES) % 4)
    run = draw_run(number, np.full(NUM_IMAGES, 0.8), number >= 0, min_similarity=-1)
    (sheet,) = sheets(clusters(run, thumbnails))["Images in no cluster"]
    assert sheet.title == "3 images" and len(sheet.strips[0].pictures) == 3
