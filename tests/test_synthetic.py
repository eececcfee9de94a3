"""The synthetic domains: repeatable, disjoint, laid out and shaped like Market-1501, with cameras that differ."""

import json
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pul_core.synthetic.people import (
    DISTRACTOR_PID,
    JUNK_PID,
    SIZES,
    STRANGERS,
    PlannedImage,
    Sizes,
    draw_image,
    make_camera,
    make_person,
    plan_domain,
)
from tasks.data.synthesize import synthesize_domain, synthesize_pair

SEED = 10
SMALL = Sizes(train_identities=4, train_images=24, test_identities=3, queries=5, gallery_images=30)
NAME = re.compile(r"(?:(\d{4})|-1)_c([1-9])s1_\d{6}_00\.jpg")
DOMAINS = ("source", "target")


@pytest.fixture(scope="module")
def plans():
    return {domain: plan_domain(domain, SEED) for domain in DOMAINS}


def in_folder(plan, folder):
    return [image for image in plan if image.folder == folder]


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("domain", DOMAINS)
def test_counts_are_those_asked_for(plans, domain):
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
    people = []
    for plan in plans.values():
        known = [image for image in plan if image.pid > 0]
        assert all(image.person == image.pid for image in known)
        people.append({image.pid for image in known if image.folder == "bounding_box_train"})
        people.append({image.pid for image in known if image.folder != "bounding_box_train"})
    assert len(set.union(*people)) == sum(len(group) for group in people)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_query_is_one_image_of_an_identity_and_camera_with_an_answer_elsewhere(plans, domain):
    query, gallery = in_folder(plans[domain], "query"), in_folder(plans[domain], "bounding_box_test")
    passes = Counter((image.pid, image.camid) for image in query)
    assert max(passes.values()) == 1
    seen_by = {pid: {image.camid for image in gallery if image.pid == pid} for pid in {image.pid for image in query}}
    assert all(seen_by[image.pid] - {image.camid} for image in query)
    assert set(seen_by) == {image.pid for image in gallery if image.pid > 0}


@pytest.mark.parametrize("domain", DOMAINS)
def test_distractors_and_junk_show_strangers_and_junk_is_never_whole(plans, domain):
    strangers = [image for image in plans[domain] if image.pid in (DISTRACTOR_PID, JUNK_PID)]
    assert all(image.person >= STRANGERS and image.folder == "bounding_box_test" for image in strangers)
    assert not any(image.is_whole for image in strangers if image.pid == JUNK_PID)
    assert any(image.is_whole for image in strangers)
    assert all(image.is_whole for image in plans[domain] if image.pid > 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_names_are_market_names_and_unique(plans, domain):
    names = [(image.folder, image.name) for image in plans[domain]]
    assert len(set(names)) == len(names)
    for image in plans[domain]:
        match = NAME.fullmatch(image.name)
        assert match is not None
        assert (int(match[1] or -1), int(match[2])) == (image.pid, image.camid)


@pytest.mark.parametrize("domain", DOMAINS)
def test_images_and_cameras_an_identity_are_spread_as_in_market(plans, domain):
    train = in_folder(plans[domain], "bounding_box_train")
    images = Counter(image.pid for image in train)
    cameras = Counter(pid for pid, _ in {(image.pid, image.camid) for image in train})
    assert min(cameras.values()) >= 2
    assert 4.0 < np.mean(list(cameras.values())) < 4.8
    assert max(images.values()) > 2 * np.mean(list(images.values()))


def test_an_image_does_not_depend_on_how_many_others_there_are():
    small, default = plan_domain("target", SEED, SMALL)[0], plan_domain("target", SEED)[0]
    assert replace(small, camid=default.camid, frame=default.frame) == default
    picture = draw_image("target", SEED, default)
    np.testing.assert_array_equal(picture, draw_image("target", SEED, replace(small, camid=default.camid)))


def test_pictures_are_repeatable_arrays_and_seeds_differ():
    image = PlannedImage("query", pid=1, camid=3, frame=7, person=1, shot=2)
    picture = draw_image("source", SEED, image)
    assert (picture.shape, picture.dtype) == ((128, 64, 3), np.uint8)
    make_person.cache_clear()
    make_camera.cache_clear()
    np.testing.assert_array_equal(picture, draw_image("source", SEED, image))
    assert not np.array_equal(picture, draw_image("source", SEED + 1, image))
    assert not np.array_equal(picture, draw_image("target", SEED, image))


@pytest.mark.parametrize("domain", DOMAINS)
def test_cameras_differ_more_than_the_pictures_of_one(domain):
    def mean_colours(camid):
        images = [PlannedImage("query", pid, camid, 0, pid, shot) for pid in range(1, 13) for shot in range(2)]
        return np.array([draw_image(domain, SEED, image).mean(axis=(0, 1)) for image in images])

    colours = np.stack([mean_colours(camid) for camid in range(1, 7)])  # cameras, pictures, RGB
    between, within = colours.mean(axis=1).std(axis=0).mean(), colours.std(axis=1).mean()
    assert between > within > 1


def test_pictures_of_one_pass_are_closer_than_those_of_another_camera():
    def picture(pid, camid, shot):
        return draw_image("target", SEED, PlannedImage("query", pid, camid, 0, pid, shot)).astype(float)

    same = [np.abs(picture(pid, 1, 0) - picture(pid, 1, 1)).mean() for pid in range(5001, 5021)]
    other = [np.abs(picture(pid, 1, 0) - picture(pid, camid, 0)).mean() for pid in range(5001, 5021) for camid in (4, 5)]
    assert np.mean(same) < 0.8 * np.mean(other)


def test_a_folder_has_markets_layout_and_the_same_bytes_with_one_process_or_two(tmp_path):
    seen = []
    one = synthesize_domain(tmp_path / "a", "target", seed=SEED, sizes=SMALL, processes=1, on_progress=lambda *now: seen.append(now))
    two = synthesize_domain(tmp_path / "b", "target", seed=SEED, sizes=replace(SMALL), processes=2)
    assert files(one) == files(two)
    assert sorted(path.name for path in one.iterdir()) == ["bounding_box_test", "bounding_box_train", "query", "synthetic.json"]
    for folder, count in {"bounding_box_train": 24, "query": 5, "bounding_box_test": 30}.items():
        paths = list((one / folder).iterdir())
        assert len(paths) == count
        assert all(NAME.fullmatch(path.name) for path in paths)
    with Image.open(paths[0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")
    assert json.loads((one / "synthetic.json").read_text())["seed"] == SEED
    assert seen[-1] == (59, 59)


def test_a_whole_folder_is_used_again_and_another_one_is_refused(tmp_path):
    calls = []
    folder = synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL, on_progress=lambda *now: calls.append(now)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not calls
    with pytest.raises(FileExistsError, match="something else"):
        synthesize_domain(tmp_path, "source", seed=SEED + 1, sizes=SMALL)
    next(folder.glob("query/*.jpg")).unlink()
    with pytest.raises(FileExistsError):
        synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL)


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(done, total):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        synthesize_domain(tmp_path, "source", seed=SEED, sizes=SMALL, on_progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_pair_reports_its_progress_together(tmp_path):
    seen = []
    pair = synthesize_pair(
        tmp_path, seed=SEED, source_sizes=SMALL, target_sizes=SMALL, processes=1, on_progress=lambda *now: seen.append(now)
    )
    assert [folder.name for folder in pair] == ["source", "target"]
    assert seen[-1] == (118, 118)
    assert all(before[0] < after[0] for before, after in pairwise(seen))


@pytest.mark.parametrize(
    "wrong",
    [
        {"cameras": 1},
        {"train_images": 7},
        {"gallery_images": 6},
        {"queries": 2},
        {"queries": 500},
        {"train_identities": 0},
    ],
)
def test_sizes_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match=r"give|cameras|must be"):
        plan_domain("source", SEED, replace(SMALL, **wrong))
