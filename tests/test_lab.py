"""benchmarks/lab.py: packed sets, settings by path, the loop of examples/pul_by_hand.py, runs that are killed and resumed, the table."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "examples")]

import lab  # noqa: E402
import pul_by_hand  # noqa: E402
from lab_queue import Experiment, change, read_queue, resolve_recipe  # noqa: E402
from lab_table import markdown, tabulate  # noqa: E402
from packed import Sets, compress, decode, pack, read_packed  # noqa: E402

from pul_core.errors import UserError  # noqa: E402
from pul_core.recipes import RECIPES  # noqa: E402
from pul_core.settings import Recipe  # noqa: E402
from pul_core.synthetic import people  # noqa: E402
from pul_core.synthetic.people import Sizes  # noqa: E402

SIZE = (64, 32)
SMALL = Sizes(train_identities=8, train_images=48, test_identities=4, queries=8, gallery_images=24)
WITHOUT = ("prefect", "mlflow", "pydantic", "pandas", "pyarrow", "fsspec", "tasks", "flows", "deployments")
SETTINGS = {
    "pretraining.epochs": 1,
    "fine_tuning.epochs": 1,
    "dbscan.num_neighbours": 6,
    "dbscan.num_averaged": 2,
    "dbscan.max_distance": 0.6,
    "stopping.max_iterations": 2,
}
PAIR = {"source": "synthetic:{seed}/source", "target": "synthetic:{seed}/target"}
NETWORK = {"backbone": "test_resnet", "weights": "random"}
EXPERIMENTS = [
    {"name": "modern", **PAIR, **NETWORK, "set": SETTINGS, "seeds": [10]},
    {"name": "original", **PAIR, **NETWORK, "set": SETTINGS | {"model.start_from": "original"}, "seeds": [10]},
    {"name": "direct", "source": PAIR["source"], "direct": ["synthetic:11/target"], **NETWORK, "set": SETTINGS, "seeds": [10]},
]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few images, and one thread."""
    for domain in ("source", "target"):
        monkeypatch.setitem(people.SIZES, domain, SMALL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory):
    """The folder of the packed sets; sets are drawn when they are first used."""
    return tmp_path_factory.mktemp("sets")


@pytest.fixture
def run(packed_folder, tmp_path):
    """A function that runs a queue and returns its records without their times."""

    def run(folder, experiments=EXPERIMENTS):
        queue = tmp_path / "queue.json"
        queue.write_text(json.dumps(experiments))
        crashes = lab.run_queue(queue, Sets(packed_folder, SIZE), tmp_path / folder, "cpu", None)
        return crashes, records_of(tmp_path / folder)

    return run


def records_of(folder):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in lab.read_records(folder)]


def test_a_killed_run_continues_and_has_the_records_of_an_undisturbed_one(run, tmp_path, monkeypatch):
    crashes, undisturbed = run("undisturbed")
    assert crashes == 0
    steps = [(record["experiment"], record["iteration"]) for record in undisturbed]
    assert steps == [("modern", 0), ("modern", 1), ("modern", 2), ("original", 0), ("original", 1), ("original", 2), ("direct", 0)]
    scores = {(record["experiment"], record["iteration"]): record["mAP"] for record in undisturbed}
    assert len({*scores.values()}) > 3 and scores["modern", 2] != scores["original", 2], "the iterations and the experiments differ"

    iterate, calls = lab.iterate, []

    def killed(loop, plan):
        calls.append(plan.experiment)
        if len(calls) in (2, 5):  # in the second iteration of each experiment: the first kill leaves one iteration to be done
            raise KeyboardInterrupt
        return iterate(loop, plan)

    monkeypatch.setattr(lab, "iterate", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run("killed")
        with (tmp_path / "killed" / "records.jsonl").open("a") as file:
            file.write('{"experiment": "mod')  # as if the process had been killed while it wrote
    sources = list((tmp_path / "killed" / "models").glob("source-*"))
    trained_at = sources[0].stat().st_mtime_ns
    crashes, resumed = run("killed")
    assert resumed == undisturbed
    assert calls == ["modern", "modern", "modern", "original", "original", "original"], "no finished iteration is run again"
    assert [file.stat().st_mtime_ns for file in (tmp_path / "killed" / "models").glob("source-*")] == [trained_at], "one source model"
    assert run("killed") == (0, undisturbed) and len(calls) == 6, "nothing is missing"


def test_an_unfinished_run_whose_models_are_lost_starts_again(run, tmp_path):
    _, undisturbed = run("out", EXPERIMENTS[:1])
    file = tmp_path / "out" / "records.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    shutil.rmtree(tmp_path / "out" / "models")
    assert run("out", EXPERIMENTS[:1]) == (0, undisturbed)
    assert len(file.read_text().splitlines()) == 4, "iteration 1 was run again"


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_the_loop_equals_the_example(run, recipe):
    settings = SETTINGS | {"kmeans.num_clusters": 8, "selection.min_similarity": 0.4 if recipe == "paper" else -1}
    if recipe == "modern":
        settings |= {"model.pool": "gem", "model.last_stride": 1, "model.neck": True, "model.flip": True}
    _, records = run(recipe, [{"name": "same", **PAIR, **NETWORK, "recipe": recipe, "set": settings, "seeds": [10]}])
    resolved = resolve_recipe(Experiment(name="", source=(), recipe=recipe, set=settings, **NETWORK), SIZE)
    iterations = list(pul_by_hand.adapt("synthetic:10/source", "synthetic:10/target", resolved, 10))
    assert [(record["mAP"], record["rank_1"], record["stop"]) for record in records] == [
        (scores.mean_ap, scores.cmc[0], stop) for _, scores, _, stop in iterations
    ]
    assert [record["reliable"] for record in records[1:]] == [num_reliable for _, _, num_reliable, _ in iterations[1:]]


def test_two_sources_are_joined_with_their_identities_apart(run):
    both = {"name": "two", "source": ["synthetic:10/source", "synthetic:11/source"], "direct": ["synthetic:10/target"], **NETWORK}
    _, (two,) = run("two", [both | {"set": SETTINGS}])
    _, (one,) = run("one", [both | {"set": SETTINGS, "source": ["synthetic:10/source"]}])
    assert two["source"] == "synthetic:10/source + synthetic:11/source" and two["mAP"] != one["mAP"]


def test_records_with_other_settings_and_crashes_are_reported_and_the_other_experiments_run(run, capsys):
    direct = EXPERIMENTS[2]
    run("out", [direct])
    others = [
        direct | {"set": SETTINGS | {"pretraining.epochs": 2}},
        direct | {"name": "other", "source": "none"},
        direct | {"name": "new"},
    ]
    crashes, records = run("out", others)
    assert (crashes, [record["experiment"] for record in records]) == (2, ["direct", "new"])
    errors = capsys.readouterr().err
    assert "records of 'direct'" in errors and "no set 'none'" in errors


def test_a_loop_without_clusters_ends_with_a_record_that_says_so(run):
    settings = SETTINGS | {"dbscan.min_samples": 100}
    _, records = run("failed", [EXPERIMENTS[0] | {"set": settings}])
    assert len(records) == 2 and records[1]["stop"].startswith("failed: only 0 of")


def paths_of(settings, prefix=""):
    """Return the values of nested settings by dotted path."""
    paths = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        paths |= paths_of(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name: value}
    return paths


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_can_be_changed_by_its_path(recipe):
    """From the values of another recipe, one path at a time, to all values of this one."""
    changed, paths = Recipe(), paths_of(RECIPES[recipe])
    assert len(paths) > 40
    for path, value in paths.items():
        changed = change(changed, path, value)
    assert asdict(changed) == asdict(RECIPES[recipe])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("fine_tuning.epoch", 4, "there is no setting 'epoch'"),
        ("fine_tuning.epochs", 0, "epochs cannot be 0"),
        ("fine_tuning.epochs", 4.5, "epochs cannot be 4.5"),
        ("fine_tuning.epochs", True, "epochs cannot be True"),
        ("fine_tuning.optimisation", {}, "optimisation cannot be {}"),
        ("fine_tuning.dropout", 1, "dropout cannot be 1"),
        ("model.centre_cameras", 1, "centre_cameras cannot be 1"),
        ("clustering.algorithm", "hdbscan", "algorithm cannot be 'hdbscan'"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused(path, value, message):
    with pytest.raises(UserError, match=message):
        change(Recipe(), path, value)


def test_the_queue_in_the_repository_is_valid():
    experiments = read_queue(ROOT / "benchmarks" / "lab.json")
    recipes = [resolve_recipe(experiment, SIZE) for experiment in experiments]
    assert {recipe.model.backbone for recipe in recipes} == {"mobilenetv2_100"}
    judged = {f"synthetic:{seed}" for seed in range(3)}
    used = {name.format(seed=s).split("/")[0] for e in experiments for s in e.seeds for name in (*e.source, *e.direct, e.target or "")}
    assert not used & judged and "cuhk01" not in {experiment.target for experiment in experiments}, "sets that judge choose nothing"


@pytest.fixture
def folder(tmp_path):
    """A folder in the layout of Market-1501 without queries: four people on two cameras, and one distractor; higher than packed images."""
    train = tmp_path / "set" / "bounding_box_train"
    train.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (18, 120, 50, 3), np.uint8)
    for i, (pid, camid) in enumerate([(pid, camid) for pid in (2, 5, 7, 9) for camid in (1, 2) for _ in range(2)] + [(0, 1), (0, 2)]):
        Image.fromarray(pixels[i]).save(train / f"{pid:04d}_c{camid}s1_{i:06d}_00.{'png' if i % 2 else 'jpg'}")
    return train.parent


def test_a_set_without_a_gallery_is_scored_on_its_last_people(folder, tmp_path):
    pack("held", str(folder), tmp_path / "held.npz", height=60, hold_out=2)
    packed = read_packed(tmp_path / "held.npz")
    splits = {split: decode(packed, split, *SIZE) for split in ("train", "query", "gallery")}
    assert {split: sorted(zip(part.pids.tolist(), part.camids.tolist(), strict=True)) for split, part in splits.items()} == {
        "train": [(0, 1), (0, 2), *[(pid, camid) for pid in (2, 5) for camid in (1, 2) for _ in range(2)]],
        "query": [(7, 1), (7, 1), (9, 1), (9, 1)],
        "gallery": [(7, 2), (7, 2), (9, 2), (9, 2)],
    }
    with pytest.raises(UserError, match="leave --hold-out away"):
        pack("again", "synthetic:10/target", tmp_path / "again.npz", hold_out=2)


def test_a_reference_may_name_a_range_of_the_people_to_train_on(folder, tmp_path):
    pack("held", str(folder), tmp_path / "held.npz", hold_out=1)
    sets = Sets(tmp_path, SIZE)
    assert [set(sets.split(f"held{part}", "train").pids.tolist()) for part in ("", "[:]", "[:2]", "[2:]", "[1:2]")] == [
        {0, 2, 5, 7},
        {0, 2, 5, 7},
        {2, 5},
        {7},
        {5},
    ]
    assert set(sets.split("held[:1]", "query").pids.tolist()) == {9}


def test_higher_images_are_scaled_down_and_others_keep_their_size():
    image = Image.new("RGB", (50, 120))
    sizes = [Image.open(io.BytesIO(compress(image, height, 90))).size for height in (60, 120, 200)]
    assert sizes == [(25, 60), (50, 120), (50, 120)]


def record(experiment, seed, iteration, images, mean_ap, target="t", stop=None):
    scores = {} if mean_ap is None else {"rank_1": mean_ap + 0.1, "mAP": mean_ap}
    name = {"experiment": experiment, "source": "s", "target": target, "seed": seed, "iteration": iteration}
    return name | {"images_seen": images, "stop": stop, "seconds": {"pretrain": 600, "fine_tune": 60}} | scores


def test_the_table_compares_at_equal_images():
    records = [
        *[record("base", 0, t, 100 * t, value, stop="limit" if t == 2 else None) for t, value in enumerate((0.2, 0.3, 0.4))],
        *[record("base", 1, t, 100 * t, value, stop="limit" if t == 2 else None) for t, value in enumerate((0.3, 0.5, 0.6))],
        *[record("new", 0, t, 90 * t, value, stop="limit" if t == 3 else None) for t, value in enumerate((0.25, 0.3, 0.5, 0.9))],
        *[record("new", 1, t, 90 * t, value, stop="stable" if t == 1 else None) for t, value in enumerate((0.35, 0.6))],
        record("new", 0, 0, 0, 0.7, target="other", stop="direct transfer"),
        record("new", 2, 0, 0, 0.3),
        record("new", 2, 1, 0, None, stop="failed: no clusters"),
    ]
    rows = {(row["experiment"], row["target"], row["iteration"]): row for row in tabulate(records, "base", False)}
    assert len(rows) == 5
    first, last = rows["new", "t", "0"], rows["new", "t", "last"]
    assert (first["mAP"], first["mAP_gain"], first["mAP_gain_sd"]) == pytest.approx((30, 5, 0))
    assert last["seeds"] == 3 and last["mAP"] == pytest.approx((90 + 60 + 30) / 3)
    assert last["mAP_gain"] == pytest.approx((50 - 40 + 60 - 60) / 2), "seed 0 at 180 images, not at 270; seed 2 has no baseline"
    assert last["mAP_gain_sd"] == pytest.approx(np.std([10, 0], ddof=1))
    assert last["minutes"] == pytest.approx((4 + 2 + 1) / 3), "without source training"
    assert last["stop"] == "failed: no clusters, limit, stable"
    assert rows["new", "other", "0"]["mAP_gain"] is None
    assert len(tabulate(records, "base", True)) == 3 + 4 + 1
    lines = markdown(list(rows.values())).splitlines()
    assert len(lines) == 2 + len(rows) and len({line.count("|") for line in lines}) == 1


def test_the_commands_need_nothing_but_what_the_core_computes_with(tmp_path):
    """A name that is None in sys.modules cannot be imported."""
    (tmp_path / "records.jsonl").write_text(json.dumps(record("base", 0, 0, 0, 0.5, stop="direct transfer")) + "\n")
    hide = f"import runpy, sys; sys.modules.update(dict.fromkeys({WITHOUT}))"
    script = f"{hide}; runpy.run_path({str(ROOT / 'benchmarks' / 'lab.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", script, "table", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").read_text() == done.stdout and "| base | s | t | 0 | 1 | 60.0 |" in done.stdout
    assert json.loads((tmp_path / "table.json").read_text())[0]["mAP"] == 50
