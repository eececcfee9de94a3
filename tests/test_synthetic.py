"""Tests of the synthetic domains: deterministic, disjoint, with the layout and statistics of Market-1501, and with cameras that differ."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pul_core.errors import DataError, UserError
from pul_core.identities import DISTRACTOR_PID, JUNK_PID
from pul_core.synthetic.people import (
    FIRST_STRANGER,
    SIZES,
    PlannedImage,
    Sizes,
    draw_image,
    make_camera,
    make_person,
    plan_domain,
)
from tasks.data.synthesize import synthesize_domain

SEED = 10
SMALL = Sizes(train_identities=4, train_images=24, test_identities=3, queries=5, gallery_images=30)
FILE_NAME = re.compile(r"(?:(\d{4})|-1)_c([1-9])s1_\d{6}_00\.jpg")
DOMAINS = ("source", "target")


@pytest.fixture(scope="module")
def plans():
    return {domain: plan_domain(domain, SEED) for domain in DOMAINS}


def in_folder(plan, folder):
    return [image for image in plan if image.folder == folder]


def file_contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_counts_match_the_sizes(plans, domain):
    sizes, plan = SIZES[domain], plans[domain]
    train, gallery = in_folder(plan, "bounding_box_train"), in_folder(plan, "bounding_box_test")
    pids = Counter(image.pid for image in gallery)
    assert (len(train), len(gallery)) == (sizes.train_images, sizes.gallery_images)
    assert len(in_folder(plan, "query")) == sizes.queries
    assert len({image.pid for image in train}) == sizes.train_identities
    assert len(set(pids) - {DISTRACTOR_PID, JUNK_PID}) == sizes.test_identities
    assert pids[DISTRACTOR_PID] == round(0.15 * sizes.gallery_images)
    assert pids[JUNK_PID] == round(0.20 * sizes.gallery_images)


def test_identities_are_disjoint_between_splits_and_domains(plans):
    pids = []
    for plan in plans.values():
        known = [image for image in plan if image.pid > 0]
        assert all(image.person == image.pid for image in known)
        pids.append({image.pid for image in known if image.folder == "bounding_box_train"})
        pids.append({image.pid for image in known if image.folder != "bounding_box_train"})
    assert len(set.union(*pids)) == sum(len(group) for group in pids)


@pytest.mark.parametrize("domain", DOMAINS)
def test_each_identity_and_camera_has_at_most_one_query_and_a_match_on_another_camera(plans, domain):
    query, gallery = in_folder(plans[domain], "query"), in_folder(plans[domain], "bounding_box_test")
    tracks = Counter((image.pid, image.camid) for image in query)
    assert max(tracks.values()) == 1
    gallery_camids = {pid: {image.camid for image in gallery if image.pid == pid} for pid in {image.pid for image in query}}
    assert all(gallery_camids[image.pid] - {image.camid} for image in query)
    assert set(gallery_camids) == {image.pid for image in gallery if image.pid > 0}


@pytest.mark.parametrize("domain", DOMAINS)
def test_distractors_and_junk_show_strangers_and_junk_is_always_a_bad_box(plans, domain):
    strangers = [image for image in plans[domain] if image.pid in (DISTRACTOR_PID, JUNK_PID)]
    assert all(image.person >= FIRST_STRANGER and image.folder == "bounding_box_test" for image in strangers)
    assert not any(image.is_good_box for image in strangers if image.pid == JUNK_PID)
    assert any(image.is_good_box for image in strangers)
    assert all(image.is_good_box for image in plans[domain] if image.pid > 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_file_names_follow_market1501_and_are_unique(plans, domain):
    names = [(image.folder, image.file_name) for image in plans[domain]]
    assert len(set(names)) == len(names)
    for image in plans[domain]:
        match = FILE_NAME.fullmatch(image.file_name)
        assert match is not None
        assert (int(match[1] or -1), int(match[2])) == (image.pid, image.camid)


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_and_cameras_per_identity_are_distributed_as_in_market1501(plans, domain):
    train = in_folder(plans[domain], "bounding_box_train")
    images = Counter(image.pid for image in train)
    cameras = Counter(pid for pid, _ in {(image.pid, image.camid) for image in train})
    assert min(cameras.values()) >= 2
    assert 4.0 < np.mean(list(cameras.values())) < 4.8
    assert max(images.values()) > 2 * np.mean(list(images.values()))


def test_an_image_does_not_depend_on_the_number_of_other_images():
    small, default = plan_domain("target", SEED, SMALL)[0], plan_domain("target", SEED)[0]
    assert replace(small, camid=default.camid, frame=default.frame) == default
    pixels = draw_image("target", SEED, default)
    np.testing.assert_array_equal(pixels, draw_image("target", SEED, replace(small, camid=default.camid)))


def test_images_are_deterministic_and_differ_between_seeds_and_domains():
    image = PlannedImage("query", pid=1, camid=3, frame=7, person=1, shot=2)
    pixels = draw_image("source", SEED, image)
    assert (pixels.shape, pixels.dtype) == ((128, 64, 3), np.uint8)
    make_person.cache_clear()
    make_camera.cache_clear()
    np.testing.assert_array_equal(pixels, draw_image("source", SEED, image))
    assert not np.array_equal(pixels, draw_image("source", SEED + 1, image))
    assert not np.array_equal(pixels, draw_image("target", SEED, image))


@pytest.mark.parametrize("domain", DOMAINS)
def test_colours_differ_more_between_cameras_than_within_one(domain):
    def mean_colours(camid):
        images = [PlannedImage("query", pid, camid, 0, pid, shot) for pid in range(1, 13) for shot in range(2)]
        return np.array([draw_image(domain, SEED, image).mean(axis=(0, 1)) for image in images])

    colours = np.stack([mean_colours(camid) for camid in range(1, 7)])  # (cameras, images, RGB)
    between, within = colours.mean(axis=1).std(axis=0).mean(), colours.std(axis=1).mean()
    assert between > within > 1


def test_images_of_one_track_are_more_similar_than_images_from_two_cameras():
    def draw(pid, camid, shot):
        return draw_image("target", SEED, PlannedImage("query", pid, camid, 0, pid, shot)).astype(float)

    within = [np.abs(draw(pid, 1, 0) - draw(pid, 1, 1)).mean() for pid in range(5001, 5021)]
    between = [np.abs(draw(pid, 1, 0) - draw(pid, camid, 0)).mean() for pid in range(5001, 5021) for camid in (4, 5)]
    assert np.mean(within) < 0.8 * np.mean(between)


def test_a_folder_has_the_market1501_layout_and_the_same_bytes_with_one_process_or_two(tmp_path):
    reports = []
    one = synthesize_domain(
        tmp_path / "a", "target", seed=SEED, sizes=SMALL, processes=1, on_progress=lambda *report: reports.append(report)
    )
    two = synthesize_domain(tmp_path / "b", "target", seed=SEED, sizes=replace(SMALL), processes=2)
    assert file_contents(one) == file_contents(two)
    assert sorted(path.name for path in one.iterdir()) == ["bounding_box_test", "bounding_box_train", "query", "synthetic.json"]
    for folder, count in {"bounding_box_train": 24, "query": 5, "bounding_box_test": 30}.items():
        paths = list((one / folder).iterdir())
        assert len(paths) == count
        assert all(FILE_NAME.fullmatch(path.name) for path in paths)
    with Image.open(paths[0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")
    assert json.loads((one / "synthetic.json").read_text())["seed"] == SEED
    assert reports[-1] == (59, 59)


def test_a_complete_folder_is_reused_and_any_other_folder_is_refused(tmp_path):
    reports = []
    folder = synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL, on_progress=lambda *report: reports.append(report)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not reports
    with pytest.raises(DataError, match="does not contain exactly these images"):
        synthesize_domain(tmp_path, "source", seed=SEED + 1, sizes=SMALL)
    next(folder.glob("query/*.jpg")).unlink()
    with pytest.raises(DataError, match="does not contain exactly these images"):
        synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL)


def test_a_failure_leaves_no_files_behind(tmp_path):
    def fail(done, total):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL, on_progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": 1}, "cameras must be between 2 and 9, got 1"),
        ({"train_images": 7}, r"train_images must be at least 2 per train identity \(8\), got 7"),
        ({"gallery_images": 6}, r"gallery_images .* at least 2 per test identity \(6\), got 4"),
        ({"queries": 2}, r"queries must be at least 1 per test identity \(3\), got 2"),
        ({"queries": 500}, "queries must be at most .* got 500"),
        ({"train_identities": 0}, "train_identities must be at least 1, got 0"),
        ({"train_identities": 4997, "train_images": 9994}, "must be at most 4,999, got 5,000"),
    ],
)
def test_inconsistent_sizes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        plan_domain("source", SEED, replace(SMALL, **changes))


def test_a_number_of_processes_below_1_is_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="processes must be at least 1, got 0") as error:
        synthesize_domain(tmp_path, "source", seed=SEED, processes=0)
    assert not isinstance(error.value, UserError)
