"""`pul data check`: a test image for every finding, the verdict as exit code, and a flow that checks the same before it starts."""

import json
import logging
import re
import shutil

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from deployments.cli import _run_summary, app
from pul_core.errors import DataError, UserError
from pul_core.scoring.evaluation import score_queries
from pul_core.settings import Dbscan
from tasks import preflight
from tasks.data.check import EXAMPLES, FILE_PROBLEMS, answerable, camera_findings, check_set, crop_findings, identity_findings
from tasks.data.synthesize import Sizes, synthesize_domain
from tasks.index import index
from tasks.preflight import check_path, check_scorable, check_sets, count_images, count_usable, run_warnings, validate_run
from tasks.store.artifacts import locate, read_table, write_table
from tasks.store.config import resolve_plan


@pytest.fixture(autouse=True)
def _home(home):
    logger = logging.getLogger("pul")
    handlers, level = list(logger.handlers), logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def command(*arguments):
    """Run `pul data check`; return exit code and stdout."""
    done = CliRunner().invoke(app, ["data", "check", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def findings_by_code(root):
    report, _ = check_path(str(root))
    return {finding.code: finding for finding in report.findings}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    sizes = Sizes(train_identities=4, train_images=24, test_identities=3, queries=6, gallery_images=24)
    return synthesize_domain(tmp_path_factory.mktemp("drawn"), "target", seed=10, sizes=sizes, processes=1)


def test_a_sound_data_set(sound):
    code, text = command(sound)
    assert code == 0 and "verdict: sound" in text
    code, text = command(sound, "--json")
    report = json.loads(text)
    assert code == 0
    assert list(report) == ["path", "layout", "images", "identities", "cameras", "splits", "sizes", "findings", "verdict"]
    assert (report["layout"], report["images"], report["verdict"]) == ("market1501", 54, "sound")
    assert report["splits"] == {"train": 24, "query": 6, "gallery": 24}
    assert report["identities"] == 7 and report["cameras"] >= 2
    assert set(report["sizes"]) == {"width", "height", "bytes"}
    assert all(spread["min"] <= spread["median"] <= spread["max"] for spread in report["sizes"].values())
    assert not [finding for finding in report["findings"] if finding["severity"] != "info"]


@pytest.fixture
def broken(tmp_path, draw, monkeypatch):
    """A folder with good crops and one file for each kind of problem, named after the code of its finding."""
    monkeypatch.setattr("tasks.data.quality.MAX_PIXELS", 9_000)
    root = tmp_path / "broken"
    root.mkdir()
    good = Image.fromarray(draw(1, 1, 1))
    good.save(root / "good.png")
    Image.fromarray(draw(2, 1, 1)).save(root / "second.png")
    Image.fromarray(draw(2, 1, 2)).save(root / "third.png")
    good.save(root / "truncated.jpg")
    whole = (root / "truncated.jpg").read_bytes()
    (root / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "zero_bytes.jpg").touch()
    (root / "undecodable 'quoted'\nand \"more\".jpg").write_text("no image")
    (root / "missing.jpg").symlink_to("nothing")
    (root / "unreadable.jpg").symlink_to("unreadable.jpg")
    Image.fromarray(draw(3, 1, 1, 128, 96)).save(root / "too_large.png")
    good.convert("L").save(root / "greyscale.png")
    Image.fromarray(np.arange(512, dtype=np.uint16).reshape(32, 16) * 100).save(root / "sixteen_bit.png")
    good.convert("CMYK").save(root / "not_rgb é.jpg")
    good.save(root / "animated.webp", save_all=True, append_images=[Image.fromarray(draw(2, 1, 1))], lossless=True)
    Image.new("RGB", (8, 16), "red").save(root / "blank.png")
    shutil.copy(root / "good.png", root / "z-duplicates.png")
    return root


@pytest.mark.fault("corrupt, truncated, empty, CMYK, 16-bit, animated, oversized images", "a finding each, with what to do")
def test_each_kind_of_broken_file_is_found_once_and_named(broken):
    findings = findings_by_code(broken)
    expected = {*FILE_PROBLEMS, "greyscale", "sixteen_bit", "not_rgb", "animated", "blank", "duplicates"}
    assert set(findings) == expected
    for code, finding in findings.items():
        assert finding.count == 1 and len(finding.examples) == 1 and code in finding.examples[0]
        assert finding.severity == ("info" if code == "blank" else "warning")
        assert finding.advice


@pytest.mark.fault("names with newlines in a report", "escaped, on one line")
def test_broken_files_are_warnings_and_names_stay_on_their_line(broken):
    code, text = command(broken)
    assert code == 1 and "verdict: usable" in text
    lines = [line for line in text.splitlines() if "undecodable" in line]
    assert len(lines) == 2 and "\\n" in lines[1]
    code, text = command(broken, "--json")
    examples = {example for finding in json.loads(text)["findings"] for example in finding["examples"]}
    assert code == 1 and examples <= {str(path.relative_to(broken)) for path in broken.iterdir()}


def test_only_broken_files_are_unusable(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").write_text("no image")
    code, text = command(tmp_path, "--json")
    report = json.loads(text)
    assert code == 2 and report["verdict"] == "unusable" and report["sizes"]["bytes"]["max"] == 8
    assert [finding["code"] for finding in report["findings"] if finding["severity"] == "error"] == ["no_training_images"]


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_an_empty_or_missing_folder_is_unusable(tmp_path, name):
    (tmp_path / "empty").mkdir()
    code, text = command(tmp_path / name, "--json")
    report = json.loads(text)
    assert code == 2 and report["images"] == 0
    assert [finding["code"] for finding in report["findings"]] == ["not_a_data_set"]
    assert str(tmp_path / name) in report["findings"][0]["advice"]
    code, text = command(tmp_path / name)
    assert (code, text.splitlines()) == (2, [f"error: {report['findings'][0]['advice']}", "", "verdict: unusable"])


def test_the_number_of_examples_is_limited(tmp_path):
    for number in range(EXAMPLES + 4):
        (tmp_path / f"{number}.jpg").touch()
    finding = findings_by_code(tmp_path)["zero_bytes"]
    assert (finding.count, len(finding.examples)) == (EXAMPLES + 4, EXAMPLES)


@pytest.fixture
def shots(tmp_path, draw):
    """A function that writes crops (folder, identity, camera) in the Market-1501 layout, each with different pixels."""

    def write(*crops):
        for shot, (folder, pid, camid) in enumerate(crops):
            path = tmp_path / "set" / folder / f"{pid:04d}_c{camid}s1_{shot:06d}_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(max(pid, 0), camid, shot)).save(path)
        return tmp_path / "set"

    return write


TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
GOOD = [(TRAIN, pid, camid) for pid in (1, 2, 3) for camid in (1, 2)]


@pytest.mark.parametrize(
    ("crops", "code", "count", "examples"),
    [
        ([*GOOD, (TRAIN, 4, 1)], "single_image_identities", 1, ["4"]),
        ([*GOOD, (TRAIN, 4, 1), (TRAIN, 4, 1), (TRAIN, 5, 2), (TRAIN, 5, 2)], "single_camera_identities", 2, ["4", "5"]),
        ([(TRAIN, 1, 1), (TRAIN, 1, 2)], "one_identity", 1, ["1"]),
        ([*GOOD, (QUERY, 2, 1), (GALLERY, 2, 2)], "identities_in_train_and_test", 1, ["2"]),
        (
            [*GOOD, (QUERY, 7, 1), (GALLERY, 7, 2), (QUERY, 8, 1), (GALLERY, 8, 1)],
            "unanswerable_queries",
            1,
            ["query/0008_c1s1_000008_00.png"],
        ),
        ([*GOOD, (QUERY, 7, 1), (GALLERY, -1, 2), (GALLERY, 0, 2)], "unanswerable_queries", 1, ["query/0007_c1s1_000006_00.png"]),
        ([*GOOD, (QUERY, 7, 1), (GALLERY, 7, 1), (GALLERY, 8, 1)], "single_camera", 3, []),
        ([(TRAIN, pid, pid) for pid in (1, 1, 2, 2, 3, 3)], "cameras_like_identities", 3, ["1", "2", "3"]),
        ([*GOOD, (QUERY, 7, 1)], "no_gallery", 1, []),
        ([*GOOD, (GALLERY, 7, 1)], "no_query", 1, []),
    ],
)
def test_findings_about_identities_and_splits(shots, crops, code, count, examples):
    root = shots(*crops)
    findings = findings_by_code(root)
    assert {finding.code for finding in findings.values() if finding.severity != "info"} == {code}
    assert (findings[code].severity, findings[code].count, findings[code].examples) == ("warning", count, examples)
    assert command(root)[0] == 1


def test_junk_and_distractors_are_not_identities(shots):
    root = shots(*GOOD, (QUERY, 7, 1), (GALLERY, 7, 2), (GALLERY, 0, 1), (GALLERY, -1, 1), (TRAIN, -1, 1))
    report, _ = check_path(str(root))
    findings = [(finding.code, finding.severity, finding.count) for finding in report.findings]
    assert findings == [("unlabelled", "info", 1), ("distractors", "info", 1), ("junk", "info", 1)]
    assert report.identities == 4 and report.verdict == "sound"


def test_a_test_image_in_training_is_a_finding(shots):
    root = shots(*GOOD, (QUERY, 7, 1), (GALLERY, 7, 2))
    (leaked,) = (root / QUERY).iterdir()
    shutil.copy(leaked, root / TRAIN / "0003_c2s1_000099_00.png")
    findings = findings_by_code(root)
    assert set(findings) == {"duplicates", "test_images_in_train"}
    assert findings["test_images_in_train"].examples == [f"query/{leaked.name}"]


def test_a_data_set_that_can_only_be_scored_is_usable(shots):
    root = shots((QUERY, 7, 1), (GALLERY, 7, 2))
    (root / TRAIN).mkdir()
    findings = findings_by_code(root)
    assert [(code, finding.severity) for code, finding in findings.items()] == [("no_training_images", "warning")]
    shutil.rmtree(root / GALLERY)
    assert findings_by_code(root)["no_training_images"].severity == "error"


def test_an_unknown_identity_is_not_counted(shots):
    _, images = check_path(str(shots(*GOOD)))
    labels = read_table(images.labels).to_pandas()
    labels.loc[labels["pid"] == 3, ["pid", "identity"]] = (-1, None)
    unknown = images.model_copy(update={"labels": write_table("labels", pa_table(labels))})
    report = check_set(unknown)
    assert report.identities == 2
    assert [(finding.code, finding.severity, finding.count) for finding in report.findings] == [("unlabelled", "info", 2)]


def pa_table(frame):
    from tasks.index import LABELS

    return pa.Table.from_pandas(frame, schema=LABELS, preserve_index=False)


people = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 2)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(people, people)
def test_a_query_is_answerable_exactly_if_it_is_scored(query, gallery):
    """Compared with a loop, and with the evaluator where it applies (known cameras, a gallery that is not all junk)."""
    query_ids, gallery_ids = (np.array(pairs, np.int64).reshape(-1, 2).T for pairs in (query, gallery))
    result = answerable(*query_ids, *gallery_ids)
    expected = [pid > 0 and any(other == pid and (camid != seen or seen == -1) for other, seen in gallery) for pid, camid in query]
    assert result.tolist() == expected
    if query and (gallery_ids[0] >= 0).any() and min(camid for _, camid in query + gallery) >= 0:
        features = [np.ones((len(pairs), 2), np.float32) for pairs in (query, gallery)]
        scores = score_queries(features[0], *query_ids, features[1], *gallery_ids)
        assert result.tolist() == (scores.num_positives > 0).tolist()


def test_the_contact_sheet_has_a_row_per_camera_and_is_written_only_on_request(broken, shots, tmp_path):
    sheet = tmp_path / "sheet.png"
    root = shots(*GOOD)
    assert command(root)[0] == 0 and not sheet.exists()
    code, printed = command(root, "--sheet", sheet)
    assert code == 0 and printed.splitlines()[-1] == f"contact sheet  {sheet}"
    with Image.open(sheet) as two:
        assert np.asarray(two.convert("RGB")).std() > 10
        height = two.height
    assert command(broken, "--sheet", sheet)[0] == 1, "broken files are left out"
    with Image.open(sheet) as one:
        assert one.height * 2 == height
    code, _ = command(root, "--sheet", tmp_path / "sheet.txt")
    assert code == 2 and not (tmp_path / "sheet.txt").exists()


def checked(source, target, caplog, **parameters):
    """Run the check of the flow and return its log lines with their levels."""
    sources = [index.fn(str(source), "source")] if source else []
    unlabelled = index.fn(str(target), "target")
    caplog.clear()
    with caplog.at_level(logging.INFO, "pul"):
        check_sets(sources, unlabelled, resolve_plan({"target": "x"} | parameters))
    return [(record.levelname, record.getMessage().split(",")[0]) for record in caplog.records]


def test_the_flow_warns_and_continues(broken, shots, caplog):
    for name in ("missing", "unreadable"):
        (broken / f"{name}.jpg").unlink()
    lines = checked(shots(*GOOD, (TRAIN, 4, 1)), broken, caplog)
    assert ("WARNING", "source: single_image_identities") in lines
    assert ("WARNING", "target: truncated") in lines and ("INFO", "target: blank") in lines


@pytest.mark.parametrize(
    ("source", "target", "plan", "message"),
    [
        ([], [], {}, "the source has 0 identities"),
        ([(TRAIN, 1, 1), (TRAIN, 1, 2)], GOOD, {}, "the source has 1 identities"),
        (GOOD, GOOD[:3], {}, "the target has 3 usable training images"),
        (GOOD, GOOD, {"kmeans": {"num_clusters": 7}}, "num_clusters is 7"),
        (None, GOOD, {}, "--source DIR"),
        (GOOD, GOOD, {"original_model": "x"}, "leave one of them out"),
    ],
)
def test_the_flow_rejects_unsuitable_data_sets(tmp_path, draw, market, caplog, source, target, plan, message):
    roots = []
    for name, crops in (("source", source), ("target", target)):
        for shot, (folder, pid, camid) in enumerate(crops or []):
            path = tmp_path / name / folder / f"{pid:04d}_c{camid}s1_{shot:06d}_00.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw(pid, camid, shot)).save(path)
        if crops == []:
            (tmp_path / name).mkdir()
            for shot in range(5):
                Image.fromarray(draw(1, 1, shot)).save(tmp_path / name / f"{shot}.png")
        roots.append(None if crops is None else tmp_path / name)
    with pytest.raises(DataError, match=message):
        checked(*roots, caplog, **plan)


def test_unusable_images_are_not_counted(shots, caplog):
    root = shots(*GOOD[:4])
    next((root / TRAIN).iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="the target has 3 usable training images"):
        checked(None, root, caplog, original_model="x")


@pytest.mark.fault("a split without one usable image", "refused before anything is trained")
def test_a_query_folder_of_broken_files_is_refused_before_anything_is_trained(shots, caplog):
    root = shots(*GOOD, (QUERY, 7, 1), (GALLERY, 7, 2))
    next((root / QUERY).iterdir()).write_bytes(b"")
    with pytest.raises(DataError, match="none of the target's query images"):
        checked(None, root, caplog, original_model="x")


def test_identities_of_a_target_do_not_affect_the_check(shots, caplog):
    """Whatever the identities are, even all equal or all different: no error, no warning, the same counts."""
    root = shots(*GOOD, (QUERY, 7, 1), (GALLERY, 7, 2))
    target = index.fn(str(root), "target")
    labels = read_table(target.labels).to_pandas()
    levels = set()
    for pids in (labels["pid"], 1, np.arange(len(labels)) + 1, -1, labels["pid"].sample(frac=1, random_state=0).to_numpy()):
        other = target.model_copy(update={"labels": write_table("labels", pa_table(labels.assign(pid=pids)))})
        caplog.clear()
        with caplog.at_level(logging.INFO, "pul"):
            check_sets([], other, resolve_plan({"target": "x", "original_model": "x", "kmeans": {"num_clusters": 3}}))
        levels |= {record.levelname for record in caplog.records}
        assert preflight._check_target(other) == preflight.Counts(splits={"train": 6, "query": 1, "gallery": 1}, camera_sizes=(3, 3))
    assert levels == {"INFO"}


def images_table(sizes, paths=None, camids=None, cameras=None):
    """Return the columns of images.parquet that the findings about crops and cameras read, for images of these (width, height)."""
    width, height = np.array(sizes, np.int64).reshape(-1, 2).T
    n = len(width)
    return pa.table(
        {
            "path": pa.array(paths or [f"{number}.jpg" for number in range(n)], pa.string()),
            "width": width,
            "height": height,
            "camid": pa.array(camids or [None] * n, pa.int64()),
            "camera": pa.array(cameras or [None] * n, pa.string()),
            "problem": pa.nulls(n, pa.string()),
        }
    )


CROPS = [(64, 128)] * 20


@pytest.mark.parametrize(
    ("sizes", "codes"),
    [
        (CROPS, {}),
        ([(40 + number, 110 + 3 * number) for number in range(20)], {}),
        ([*CROPS, (600, 1500)], {}),  # a person near the camera
        ([*CROPS, (96, 80)], {"odd_shapes": ("info", 1)}),
        ([*CROPS, (96, 80), (10, 90)], {"odd_shapes": ("warning", 2)}),
        ([*CROPS, (480, 270)], {"whole_frames": ("warning", 1)}),
        ([*CROPS, (1920, 1080), (1080, 1920), (100, 50)], {"whole_frames": ("warning", 2), "odd_shapes": ("info", 1)}),
        ([(1280, 720)] * 9, {"whole_frames": ("error", 9)}),
        ([(128, 64)] * 9, {"odd_shapes": ("warning", 9)}),  # lying on their side
        ([(240, 320)] * 9, {}),
        ([(224, 224)] * 9, {}),
        ([], {}),
    ],
)
def test_sizes_that_people_do_not_have(sizes, codes):
    found = {finding.code: (finding.severity, finding.count) for finding in crop_findings(images_table(sizes), "/data/set")}
    assert found == codes


@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("crops/person/1.jpg", False),
        ("crops/car/1.jpg", True),
        ("crops/Cars/1.jpg", True),
        ("exp2/crops/traffic light/im1.jpg", True),
        ("a/cell_phone/1.jpg", True),
        ("awning-tricycle/1.jpg", True),
        ("car_0001.jpg", True),
        ("dog12.png", True),
        ("train/0001_c1.jpg", False),
        ("bounding_box_train/0001_c1s1_000001_00.jpg", False),
        ("car_park/1.jpg", False),
        ("bus_stop_3.jpg", False),
        ("carla/1.jpg", False),
        ("cam_bus/1.jpg", False),
    ],
)
def test_folders_of_other_classes(path, other):
    findings = list(crop_findings(images_table([(64, 128)], [path]), "/data/set"))
    assert [finding.code for finding in findings] == ["other_classes"] * other


def test_the_folder_of_a_class_itself_is_named():
    assert [finding.code for finding in crop_findings(images_table(CROPS), "/exp/crops/truck")] == ["other_classes"]


@pytest.mark.parametrize(
    ("folders", "cameras", "count"),
    [
        (["Ana", "Bear", "Bo"], [], 0),
        (["bus", "gate", "hall"], [], 0),
        (["bus", "tram", "hall"], ["bus", "tram", "hall"], 0),
        (["Buses", "Trams"], ["Buses", "Trams"], 0),
        (["bus/person", "hall/person"], [], 0),
        (["person", "car", "dog"], [], 2),
        (["person", "car", "dog"], ["person", "car", "dog"], 2),
        (["Pedestrian", "Head"], [], 1),
        (["cam1/person", "cam1/bus", "cam2/car"], ["cam1", "cam1", "cam2"], 2),
        (["truck", "van"], [], 2),
        (["a/Cat", "a/Bo", "b/Bo"], [], 0),
    ],
)
def test_a_camera_or_a_person_with_the_name_of_a_class(folders, cameras, count):
    table = images_table([(64, 128)] * len(folders), [f"{folder}/1.jpg" for folder in folders], cameras=cameras)
    findings = list(crop_findings(table, "/data/bench"))
    assert [finding.count for finding in findings if finding.code == "other_classes"] == [count] * bool(count)


@pytest.mark.parametrize(
    ("camids", "code"),
    [
        ([1, 2] * 100, None),
        (list(range(1, 7)) * 30, None),
        (list(range(1, 21)) * 50, None),
        ([None] * 40, None),
        ([1, 2, 3, 4], None),
        (list(range(32)), "lone_images"),
        ([*range(32), None], "lone_images"),
        (list(range(1, 16)) * 12, None),
        (sorted([*range(300)] * 30), "cameras_like_tracks"),
        (sorted([*range(12)] * 6), "cameras_like_tracks"),
        ([*range(32), 0, 1], "cameras_like_tracks"),
    ],
)
def test_cameras_that_are_none(camids, code):
    table = images_table([(64, 128)] * len(camids), camids=camids)
    assert [finding.code for finding in camera_findings(table)] == ([code] if code else [])


def test_images_of_unknown_cameras_are_not_on_one_camera(shots):
    """Two images without a camera may be from two cameras: their identity is not reported as seen by a single camera."""
    root = shots(*GOOD)
    _, images = check_path(str(root))
    table = read_table(images.images).to_pandas()
    labels = read_table(images.labels)
    table.loc[labels["pid"].to_numpy() == 2, "camid"] = None
    assert not list(identity_findings(pa.Table.from_pandas(table), labels))


def test_advice_about_a_pattern_is_the_complete_option_of_the_command(sound, tmp_path, caplog):
    """Folders that look like cameras: `pul data check` has one option --pattern, and a run one for the source and one for the target."""
    shutil.copytree(sound / "bounding_box_train", tmp_path / "crops" / "camera-1")
    advice = "'camera-1' look like cameras, but are not used: give {} '(?P<camera>[^/]+)/'"
    assert advice.format("--pattern") in command(tmp_path / "crops")[1]
    check_sets([], index.fn(str(tmp_path / "crops"), "target"), resolve_plan({"target": "x", "original_model": "x"}))
    assert advice.format("--target-pattern") in caplog.text


NAMES = {  # of the images of a target, and the number of its known cameras
    2: [f"{pid:04d}_c{camid}s1_{shot}_00.png" for pid in (1, 2) for camid in (1, 2) for shot in range(4)],
    1: [f"{pid:04d}_c1s1_{shot}_00.png" for pid in (1, 2) for shot in range(8)],
    0: [f"{shot}.png" for shot in range(16)],
}


@pytest.mark.parametrize(
    ("num_cameras", "parameters", "recipe", "first_words"),
    [
        (0, {}, "paper", "paper (auto: most cameras are unknown, and there are no style groups): "),
        (1, {"recipe": "auto"}, "paper", "paper (auto: 1 known camera): "),
        (2, {"recipe": None, "dbscan": {"num_neighbours": 4}}, "modern", "modern (auto: 2 known cameras): "),
        (2, {}, "paper", "paper (auto: 2 known cameras, but an image has at most 8 possible neighbours, too few for modern's 10): "),
        (
            0,
            {"statistics": {"min_images": 4}, "dbscan": {"num_neighbours": 4}},
            "modern",
            "modern (auto: 4 style groups stand for cameras): ",
        ),
        (2, {"kmeans": {"num_clusters": 4}}, "paper", "paper (auto: k-means is requested): "),
        (2, {"recipe": "paper"}, "paper", "paper: "),
        (0, {"recipe": "modern", "dbscan": {"num_neighbours": 4}}, "modern", "modern: "),
    ],
)
def test_the_first_line_of_a_run_names_the_recipe_and_the_cameras_it_is_chosen_by(
    home, model, draw, tmp_path, num_cameras, parameters, recipe, first_words
):
    (folder := tmp_path / "set" / "bounding_box_train").mkdir(parents=True)
    for shot, name in enumerate(NAMES[num_cameras]):
        Image.fromarray(draw(1, 1, shot)).save(folder / name)
    target = str(folder.parent if num_cameras else folder)
    run = validate_run({"target": target, "original_model": locate(model)} | parameters)
    assert (run.plan.recipe, len(run.target.camera_sizes)) == (recipe, num_cameras)
    assert isinstance(run.plan.algorithm, Dbscan) is (recipe == "modern")
    assert _run_summary(run).startswith(f"{first_words}model {locate(model)} -> 16 target images")
    counts = count_usable(index.fn(target, "target"))
    assert counts.camera_sizes == run.target.camera_sizes and counts.splits == run.target.splits, "the flow counts what the command does"


def counted(target, **parameters):
    plan = resolve_plan({"target": "x", "original_model": "x"} | parameters)
    preflight.check_counts(None, target, plan)
    return list(run_warnings(target, plan))


def target_of(images, camera_sizes=(), **test):
    return preflight.Counts(splits={"train": images} | ({"query": 3, "gallery": 9} if test else {}), camera_sizes=camera_sizes, **test)


NEIGHBOURS = {"recipe": "modern", "dbscan": {"num_neighbours": 3}}
NO_CENTRING = {"recipe": "modern", "model": {"centre_cameras": False}}


@pytest.mark.parametrize(
    ("target", "parameters", "message"),
    [
        (target_of(12, (6, 6)), {"recipe": "modern"}, "at most 6 possible"),
        (target_of(11), {"recipe": "modern"}, "at most 10 possible"),
        (target_of(11, (11,)), {"recipe": "modern"}, "at most 10 possible"),
        (target_of(30, (25,)), {"recipe": "modern", "dbscan": {"num_neighbours": 29}}, "at most 29 possible"),
        (target_of(32, (1,) * 32), {"recipe": "modern"}, "alone on its camera"),
        (target_of(32, (1,) * 32), {"recipe": "paper", "model": {"centre_cameras": True}}, "alone on its camera"),
    ],
)
def test_what_can_only_end_in_one_cluster_is_refused_before_training(target, parameters, message):
    with pytest.raises(DataError, match=message):
        counted(target, **parameters)


@pytest.mark.parametrize(
    ("target", "parameters", "warnings"),
    [
        (target_of(12, (6, 6)), {}, []),
        (target_of(12, (6, 6)), NEIGHBOURS, ["neighbours"]),
        (target_of(40, (20, 20)), {"recipe": "modern"}, ["neighbours"]),
        (target_of(100, (50, 50)), {"recipe": "modern"}, []),
        (target_of(100, (1,) * 100), NO_CENTRING, []),
        (target_of(32, (1,) * 31), {"recipe": "modern"}, ["neighbours"]),
        (target_of(100, (50, 50), single_camera=True), {}, ["scores will be missing"]),
    ],
)
def test_what_will_probably_not_work_is_a_warning(target, parameters, warnings):
    found = counted(target, **parameters)
    assert len(found) == len(warnings)
    assert all(part in warning for part, warning in zip(warnings, found, strict=True))


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (GOOD, "0 query and 0 gallery images"),
        ([*GOOD, (QUERY, 7, 1)], "1 query and 0 gallery images"),
        ([*GOOD, (QUERY, 7, 1), (GALLERY, 7, 1)], "all query and gallery images are from one camera"),
        ([*GOOD, (QUERY, -1, 1), (GALLERY, 7, 2)], "none of the 1 query images of .* has an identity"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_the_same_words_before_and_after_indexing(shots, crops, message):
    root = str(shots(*crops))
    with pytest.raises(DataError, match=message) as listed:
        check_scorable(count_images(root), root)
    with pytest.raises(DataError) as indexed:
        preflight.check_evaluation(index.fn(root, "target"), root)
    assert str(listed.value) == str(indexed.value)


def test_queries_without_a_match_are_refused_before_features_are_extracted(shots):
    root = str(shots(*GOOD, (QUERY, 7, 1), (GALLERY, 7, 1), (GALLERY, 8, 2)))
    check_scorable(count_images(root), root)
    with pytest.raises(DataError, match=r"none of the 1 query images of .* has a match"):
        preflight.check_evaluation(index.fn(root, "target"), root)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([TRAIN, QUERY, GALLERY]), st.integers(-1, 3), st.integers(1, 3)), min_size=1, max_size=12))
def test_counts_before_and_after_indexing_agree(tmp_path_factory, crops):
    root = tmp_path_factory.mktemp("counts")
    (root / TRAIN).mkdir()
    for shot, (folder, pid, camid) in enumerate(crops):
        path = root / folder / f"{pid:04d}_c{camid}s1_{shot:06d}_00.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 8)).save(path)
    images = index.fn(str(root), "target")
    listed, indexed = count_images(str(root)), preflight._count_usable(images, read_table(images.images))
    for name in ("splits", "camera_sizes", "single_camera"):
        assert getattr(listed, name) == getattr(indexed, name)


@pytest.mark.parametrize(
    ("few_labels", "identities", "message"),
    [
        ({"file": "nowhere.txt"}, 3, "there is no list of labels 'nowhere.txt': give a number of identities, a share such as 10%"),
        ({"file": ""}, 3, "there is no list of labels ''"),
        ({"identities": 2}, 0, "has no identities, which few_labels requires"),
        ({"share": 0.5}, 0, "has no identities, which few_labels requires"),
        ({"identities": 2}, 3, None),
        ({}, 0, None),
    ],
)
def test_target_labels_that_do_not_exist_are_refused_before_the_run(few_labels, identities, message):
    plan = resolve_plan({"target": "x", "original_model": "x", "few_labels": few_labels})
    counts = target_of(30).model_copy(update={"identities": identities})
    if message is None:
        preflight._check_few_labels(counts, plan)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        preflight._check_few_labels(counts, plan)


@pytest.mark.parametrize("path", ["", "  ", "a\0b"])
def test_an_empty_path_is_not_the_working_folder(path):
    (finding,) = check_path(path)[0].findings
    assert (finding.code, finding.severity) == ("not_a_data_set", "error") and "is not the path of a data set" in finding.advice
