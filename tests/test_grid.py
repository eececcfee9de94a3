"""The children of a sweep compared with nested loops, and the errors of invalid sweeps."""

from dataclasses import asdict

import pytest

from flows.sweep import data_sets, jobs_of
from pul_core.settings import Selection
from tasks.operations.grid import sweep_children
from tasks.operations.sweeps import OpenSweep
from tasks.store.config import resolve_plan

BASE = {"source": ["a", "b"], "target": "t", "selection": {"close_to": "any_centre"}}
OPEN = OpenSweep(name="sweep-1", folder="sweeps/sweep-1", started={2: "amber-fox"})


def test_every_variant_with_every_point_with_every_seed():
    grid = {"selection.min_similarity": [0.8, 0.9], "kmeans.num_clusters": [5, 6]}
    variants = {"plain": {}, "no erasing": {"fine_tuning.augmentation.erase_probability": 0}}
    expected = [
        (variant, similarity, clusters, seed) for variant in variants for similarity in (0.8, 0.9) for clusters in (5, 6) for seed in (3, 4)
    ]
    children = sweep_children(BASE, grid, variants, [3, 4])
    assert [child.number for child in children] == list(range(1, 17))
    for child, (variant, similarity, clusters, seed) in zip(children, expected, strict=True):
        assert child.setting == f"{variant}, selection.min_similarity={similarity}, kmeans.num_clusters={clusters}"
        assert child.plan.selection == Selection(min_similarity=similarity, close_to="any_centre")
        assert (child.plan.kmeans.num_clusters, child.plan.seed, child.seed) == (clusters, seed, seed)
        assert child.plan.fine_tuning.augmentation.erase_probability == (0 if variant == "no erasing" else 0.5)
    assert BASE == {"source": ["a", "b"], "target": "t", "selection": {"close_to": "any_centre"}}, "what was given is left alone"


def test_a_recipe_is_swept_like_any_parameter():
    children = sweep_children(BASE, {"recipe": ["paper", "released-code"]})
    assert [child.plan.fine_tuning.epochs for child in children] == [4, 20]
    assert [child.setting for child in children] == ["recipe=paper", "recipe=released-code"]


def test_seeds_are_those_of_the_base_unless_they_are_given():
    assert [child.seed for child in sweep_children(BASE | {"seed": 7})] == [7]
    assert [child.seed for child in sweep_children(BASE | {"seed": 7}, seeds=[1, 2])] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"grid": {"selection.min_similarty": [1]}}, ["no parameter 'selection.min_similarty'", "selection.min_similarity"]),
        ({"grid": {"selektion.min_similarity": [1]}}, ["no parameter 'selektion.min_similarity'", "selection.min_similarity"]),
        ({"grid": {"selection": [1]}}, ["no parameter 'selection'", "selection.close_to"]),
        ({"grid": {"recipe.name": ["paper"]}}, ["no parameter 'recipe.name'", "recipe"]),
        ({"grid": {"recipe": ["best"]}}, ["no recipe 'best'"]),
        ({"grid": {"recipe": ["paper", "auto"]}}, ["set recipe to one of paper, modern, released-code, not auto"]),
        ({"grid": {"seed": [1, 2]}}, ["give the seeds separately"]),
        ({"grid": {"selection.min_similarity": [0.8, 2]}}, ["selection.min_similarity=2", "less than or equal to 1, got 2"]),
        ({"grid": {"selection.min_similarity": []}}, ["selection.min_similarity must be a list"]),
        ({"grid": {"selection.min_similarity": 0.8}}, ["must be a list of values", "got 0.8"]),
        ({"seeds": []}, ["seeds must be a list"]),
        ({"seeds": [1, 1]}, ["children 1 and 2 of the sweep are the same run", "seed 1"]),
        ({"grid": {"selection.min_similarity": [0.8, 0.80]}}, ["are the same run"]),
        (
            {"grid": {"selection.min_similarity": [0.8]}, "variants": {"a": {"selection.min_similarity": 0.9}}},
            ["selection.min_similarity is set by the grid and by variant 'a'"],
        ),
    ],
)
def test_invalid_sweeps_are_refused_in_one_line(arguments, words):
    with pytest.raises(ValueError) as refused:
        sweep_children(BASE, **arguments)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_data_and_models_may_differ_from_seed_to_seed():
    base = {"source": ["a{seed}", "b"], "target": "t{seed}"}
    children = sweep_children(base, {"original_model": [None, "m-{seed}.safetensors"]}, seeds=[3, 4])
    assert [(list(child.plan.source), child.plan.target, child.plan.original_model) for child in children] == [
        (["a3", "b"], "t3", None),
        (["a4", "b"], "t4", None),
        (["a3", "b"], "t3", "m-3.safetensors"),
        (["a4", "b"], "t4", "m-4.safetensors"),
    ]
    assert base == {"source": ["a{seed}", "b"], "target": "t{seed}"}


def test_a_sweep_requires_a_target():
    with pytest.raises(ValueError, match="requires a target"):
        sweep_children({"source": "a"})


def test_a_source_model_that_several_children_start_from_is_a_job_before_them():
    children = sweep_children(BASE, {"selection.min_similarity": [0.8, 0.9]}, seeds=[0, 1])
    jobs = {job.name: job for job in jobs_of(children, OPEN)}
    assert list(jobs) == ["source-1", "source-2", "child-1", "child-2", "child-3", "child-4"]
    assert [jobs[f"child-{child.number}"].after for child in children] == ["source-1", "source-2", "source-1", "source-2"]
    assert [jobs[name].parameters["seed"] for name in ("source-1", "source-2")] == [0, 1]
    assert jobs["source-1"].parameters["pretraining"] == asdict(children[0].plan.pretraining)
    assert jobs["child-2"].environment == {"PUL_SWEEP": "sweep-1/2", "PUL_RESUME": "amber-fox"}
    assert jobs["child-1"].environment == {"PUL_SWEEP": "sweep-1/1"}


def test_a_shared_source_model_has_the_parameters_of_its_children():
    """The parameters of the job resolve to the model, training, seed and machine of the children."""
    children = sweep_children(BASE | {"recipe": "released-code"}, {"selection.min_similarity": [0.8, 0.9]})
    plan = resolve_plan(jobs_of(children, OPEN)[0].parameters)
    for name in ("source", "source_data", "model", "pretraining", "machine", "seed"):
        assert getattr(plan, name) == getattr(children[0].plan, name)


@pytest.mark.parametrize(
    ("base", "grid"),
    [
        (BASE, {"pretraining.epochs": [1, 2]}),
        (BASE, {"model.height": [64, 128]}),
        ({"target": "t", "original_model": "m"}, {"selection.min_similarity": [0.8, 0.9]}),
    ],
)
def test_children_that_share_no_source_training_do_not_wait(base, grid):
    assert [job.after for job in jobs_of(sweep_children(base, grid), OPEN)] == [None, None]


def test_every_data_set_is_indexed_once():
    children = sweep_children(BASE, {"selection.min_similarity": [0.8, 0.9], "target": ["t", "u"]})
    assert [(path, role) for path, role, _ in data_sets(children)] == [("a", "source"), ("b", "source"), ("t", "target"), ("u", "target")]
