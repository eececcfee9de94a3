"""Settings, recipes and plans: one definition per setting, from which the forms, the config and the documents follow."""

import json
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from yaml import safe_load

from deployments.servers import PREFECT_FILE
from flows.evaluate import evaluate_model
from flows.pretrain import pretrain_original
from flows.pul import pul
from flows.suggest import suggest_clusters
from flows.sweep import sweep
from pul_core.errors import DataError, UserError
from pul_core.recipes import MODERN, PAPER, RECIPES, RELEASED_CODE
from pul_core.settings import Dbscan, KMeans, Model, Recipe, Training, read_settings
from tasks.preflight import Counts, check_counts, recipe_for
from tasks.store.config import Overrides, Plan, describe, flatten, parameter_names, parameters_of, resolve_plan, set_parameter

ROOT = Path(__file__).parent.parent
OPTIONAL = {f"{data}.{name}" for data in ("source_data", "target_data") for name in ("layout", "pattern")}
OPTIONAL |= {"original_model", "few_labels.identities", "few_labels.share", "few_labels.file"}
OPTIONAL |= {"machine.device", "machine.threads", "machine.extraction_batch_size"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leaves_no_setting_of_the_method_open(recipe):
    plan = parameters_of(resolve_plan({"recipe": recipe, "target": "x"}))
    assert {name for name, value in flatten(plan).items() if value is None} == OPTIONAL


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_without_changes_is_its_recipe(recipe):
    plan = resolve_plan({"recipe": recipe, "target": "x"})
    assert all(getattr(plan, section.name) == getattr(RECIPES[recipe], section.name) for section in fields(Recipe))


KMEANS_FORM = Overrides[KMeans]  # an empty form has every setting, None


@pytest.mark.parametrize(
    ("parameters", "num_cameras", "recipe"),
    [
        ({}, 0, "modern"),
        ({}, 1, "paper"),
        ({}, 2, "modern"),
        ({"recipe": None}, 6, "modern"),
        ({"recipe": "auto", "statistics": {"style_groups": 0}}, 1, "paper"),
        ({"recipe": "auto"}, 2, "modern"),
        ({"recipe": "auto", "kmeans": {}}, 2, "modern"),
        ({"recipe": "auto", "kmeans": {"num_clusters": None}}, 2, "modern"),
        ({"recipe": "auto", "kmeans": KMEANS_FORM()}, 2, "modern"),
        ({"recipe": "auto", "kmeans": {"num_clusters": 0}}, 2, "paper"),
        ({"recipe": "auto", "kmeans": {"num_clusters": 0}}, 0, "paper"),
        ({"recipe": "auto", "clustering": {"algorithm": "kmeans"}}, 2, "paper"),
        ({"recipe": "auto", "kmeans": KMEANS_FORM(num_restarts=3)}, 2, "paper"),
        ({"recipe": "paper"}, 2, "paper"),
        ({"recipe": "modern"}, 0, "modern"),
        ({"recipe": "released-code"}, 2, "released-code"),
        ({"recipe": "modern", "kmeans": {"num_clusters": 9}}, 2, "modern"),
    ],
)
def test_auto_is_modern_unless_there_are_settings_of_kmeans_or_nothing_stands_for_cameras(parameters, num_cameras, recipe):
    """The plan names the recipe that was chosen, so a run that is repeated from its config has the same one."""
    given = {"target": "x", "fine_tuning": {"epochs": 3}} | parameters
    sizes = (50,) * num_cameras
    plan = resolve_plan(given, recipe_for(given, Counts(splits={"train": 100}, camera_sizes=sizes), Model())[0])
    assert plan == resolve_plan(given | {"recipe": recipe})
    assert plan.recipe == recipe and plan.clustering == RECIPES[recipe].clustering and plan.fine_tuning.epochs == 3
    assert resolve_plan(json.loads(json.dumps(parameters_of(plan))), "modern") == plan == resolve_plan(parameters_of(plan), "paper")


def test_auto_is_modern_without_cameras_where_style_groups_can_stand_for_them():
    unknown = Counts(splits={"train": 64})
    assert recipe_for({}, unknown, Model()) == ("modern", "2 style groups stand for cameras")
    assert recipe_for({}, Counts(splits={"train": 63}), Model()) == ("paper", "most cameras are unknown, and there are no style groups")
    assert recipe_for({}, Counts(splits={"train": 900}, camera_sizes=(900,)), Model()) == ("paper", "1 known camera")
    strays = Counts(splits={"train": 900}, camera_sizes=(1, 1))
    assert recipe_for({}, strays, Model()) == ("modern", "8 style groups stand for cameras")
    assert recipe_for({"statistics": {"style_groups": 0}}, strays, Model())[0] == "paper"
    many_neighbours = {"dbscan": {"num_neighbours": 32}}
    recipe, reason = recipe_for(many_neighbours, unknown, Model())
    assert (recipe, reason.partition(",")[0]) == ("paper", "2 style groups stand for cameras") and "at most 32 possible" in reason
    with pytest.raises(DataError, match="at most 32 possible neighbours"):
        check_counts(None, unknown, resolve_plan({"recipe": "modern", "target": "x", "original_model": "x"} | many_neighbours))
    ignored = {"statistics": {"ignore_cameras": True}}
    known = Counts(splits={"train": 64}, camera_sizes=(32, 32))
    assert recipe_for(ignored, known, Model()) == ("modern", "2 style groups stand for cameras")
    for neck in (False, True):  # BatchNorm of a neck is not of a feature map
        transformer = Model(backbone="vit_tiny_patch16_224", neck=neck)
        assert recipe_for({}, unknown, transformer)[0] == "paper" and recipe_for({}, known, transformer)[0] == "modern"


def test_auto_is_paper_where_modern_has_too_few_images_and_says_so():
    """The limit is that of the check before a run: with one image more, `modern` passes it."""
    few, enough = (Counts(splits={"train": 5 + others}, camera_sizes=(5, others)) for others in (10, 11))
    recipe, reason = recipe_for({}, few, Model())
    assert (recipe, reason) == ("paper", "2 known cameras, but an image has at most 10 possible neighbours, too few for modern's 10")
    with pytest.raises(DataError, match="at most 10 possible neighbours"):
        check_counts(None, few, resolve_plan({"recipe": "modern", "target": "x", "original_model": "x"}))
    check_counts(None, few, resolve_plan({"target": "x", "original_model": "x"}, recipe))
    assert recipe_for({}, enough, Model()) == ("modern", "2 known cameras")
    check_counts(None, enough, resolve_plan({"target": "x", "original_model": "x"}, "modern"))
    assert recipe_for({"dbscan": Overrides[Dbscan](camera_aware=False)}, few, Model())[0] == "modern"


def test_every_setting_has_a_description_and_every_parameter_is_in_the_form():
    hints = get_type_hints(Training, include_extras=True)
    assert describe(hints["batch_size"]) == "Images per step. Unit: images."
    properties = Overrides[Plan].model_json_schema()
    descriptions = [
        setting["description"]
        for section in properties["$defs"].values()
        for setting in section["properties"].values()
        if "description" in setting
    ]
    leaves = [setting for section in properties["$defs"].values() for setting in section["properties"].values() if "anyOf" in setting]
    assert len(descriptions) >= len(leaves) > 50
    assert {"seed", "fine_tuning.optimisation.momentum", "machine.threads"} <= set(parameter_names())


def test_the_sections_of_the_form_are_those_of_the_plan():
    parameters = set(pul.parameters.properties)
    assert parameters == {part.name for part in fields(Plan)}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_repeats_itself_through_json(recipe):
    plan = resolve_plan({"recipe": recipe, "target": "x", "source": ["a", "b"], "fine_tuning": {"epochs": 3}, "seed": 7})
    assert resolve_plan(json.loads(json.dumps(parameters_of(plan)))) == plan


@given(st.sampled_from(sorted(set(parameter_names()) - {"recipe", "target", "source", "original_model", "seed"})))
def test_a_parameter_can_be_set_by_its_name(name):
    known = flatten(parameters_of(resolve_plan({"target": "x"})))[name]
    parameters = {"target": "x"}
    set_parameter(parameters, name, known)
    assert resolve_plan(parameters) == resolve_plan({"target": "x"})
    *_, leaf = name.split(".")
    set_parameter(parameters, name.removesuffix(leaf) + leaf + "_misspelled", known)
    with pytest.raises(ValidationError, match="Extra inputs"):
        resolve_plan(parameters)


def test_a_nested_setting_changes_nothing_else():
    plan = resolve_plan({"recipe": "modern", "target": "x", "fine_tuning": {"augmentation": {"flip_probability": 0.25}}})
    changed = {
        name
        for name, value in flatten(parameters_of(plan)).items()
        if value != flatten(parameters_of(resolve_plan({"recipe": "modern", "target": "x"})))[name]
    }
    assert changed == {"fine_tuning.augmentation.flip_probability"}


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        PAPER.selection.min_similarity = 0.5


@pytest.mark.parametrize(("recipe", "kind"), [("paper", KMeans), ("modern", Dbscan), ("released-code", KMeans)])
def test_a_step_receives_the_settings_of_its_algorithm_only(recipe, kind):
    assert isinstance(RECIPES[recipe].algorithm, kind)


def test_settings_that_the_choices_leave_unread_are_not_yielded():
    names = {name for name, _ in read_settings(PAPER.fine_tuning.optimisation)}
    assert {"momentum", "nesterov"} & names == set()
    assert {"momentum", "nesterov"} <= {name for name, _ in read_settings(RELEASED_CODE.fine_tuning.optimisation)}


def test_paper_fine_tunes_more_slowly_than_it_trains_the_source_and_modern_equally_fast():
    def rates(training):
        return training.optimisation.backbone_learning_rate, training.optimisation.classifier_learning_rate

    assert rates(PAPER.fine_tuning) == (0.0002, 0.0002)
    assert rates(PAPER.pretraining) == rates(MODERN.fine_tuning) == rates(MODERN.pretraining) == (0.00035, 0.00035)


def test_the_published_numbers_of_the_released_code():
    recipe = RELEASED_CODE
    assert (recipe.selection.min_similarity, recipe.stopping.max_iterations, recipe.kmeans.num_restarts) == (0.85, 25, 10)
    assert (recipe.fine_tuning.epochs, recipe.pretraining.epochs, recipe.fine_tuning.batch_size) == (20, 40, 16)
    assert (recipe.fine_tuning.optimisation.backbone_learning_rate, recipe.fine_tuning.dropout) == (0.001, 0.5)
    assert recipe.fine_tuning.augmentation.flip_probability == 0


def test_only_modern_goes_on_from_the_last_model():
    assert {name: recipe.model.start_from for name, recipe in RECIPES.items()} == {
        "paper": "original",
        "modern": "last",
        "released-code": "original",
    }


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=list(RECIPES))
def test_no_recipe_uses_the_memories_and_batches_of_other_methods(recipe):
    assert recipe.fine_tuning.memory.entries == "none"
    assert (recipe.fine_tuning.images_per_class, recipe.pretraining.images_per_class) == (0, 0)
    assert (recipe.dbscan.margin, recipe.selection.keep_unclustered) == (0, False)
    assert recipe.statistics.by_camera == (recipe is RECIPES["modern"])


@pytest.mark.parametrize("flow", [pul, pretrain_original, evaluate_model, suggest_clusters, sweep])
def test_every_field_of_a_form_has_a_description(flow):
    """Prefect reads them from the docstring of the flow; those of the sections come with their type."""
    for name, field in flow.parameters.properties.items():
        if "$ref" not in field:
            assert field["description"], name
            if flow in (pul, pretrain_original):
                assert field["description"] == Overrides[Plan].model_fields[name].description


def test_no_description_contains_what_the_form_renders_as_a_tag():
    """Prefect's page renders descriptions as Markdown with HTML: `(?P<camera>)` lost its name there."""
    for flow in (pul, pretrain_original, evaluate_model, suggest_clusters, sweep):
        schema = json.dumps(flow.parameters.model_dump())
        assert '"description"' in schema and "<" not in schema, flow.name


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"recipe": "best"}, UserError, "no recipe 'best'"),
        ({"lambda": 1}, UserError, "no parameter 'lambda'"),
        ({"selection": {"min_similarity": 2}}, ValidationError, "less than or equal to 1"),
        ({"fine_tuning": {"epoch": 2}}, ValidationError, "Extra inputs"),
        ({"clustering": {"num_clusters": 6}}, ValidationError, "Extra inputs"),
        ({"kmeans": {"num_clusters": -1}}, ValidationError, "greater than or equal to 0"),
        ({"seed": -1}, ValidationError, "greater than or equal to 0"),
        ({"seed": "one"}, ValidationError, "valid integer"),
        ({"model": {"start_from": "middle"}}, ValidationError, "'original' or 'last'"),
        ({"fine_tuning": {"memory": {"entries": "triplet"}}}, ValidationError, "'none', 'clusters' or 'images'"),
        ({"fine_tuning": {"memory": {"momentum": 1.1}}}, ValidationError, "less than or equal to 1"),
        ({"fine_tuning": {"memory": {"temperature": 0}}}, ValidationError, "greater than 0"),
        ({"statistics": {"share": 0}}, ValidationError, "greater than 0"),
        ({"statistics": {"share": 1.1}}, ValidationError, "less than or equal to 1"),
        ({"statistics": {"min_images": 1}}, ValidationError, "greater than or equal to 2"),
        ({"fine_tuning": {"images_per_class": -1}}, ValidationError, "greater than or equal to 0"),
        ({"fine_tuning": {"images_per_class": 33}}, UserError, r"at most batch_size \(32\), got 33"),
        ({"pretraining": {"images_per_class": 9, "batch_size": 8}}, UserError, r"at most batch_size \(8\), got 9"),
        ({"dbscan": {"margin": 0.5}}, UserError, r"max_distance \(0.45\) plus or minus margin \(0.5\)"),
        ({"dbscan": {"margin": 0.2, "max_distance": 0.9}}, UserError, r"max_distance \(0.9\) plus or minus margin \(0.2\)"),
    ],
)
def test_invalid_parameters_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        resolve_plan({"target": "x"} | parameters)


def test_the_switches_of_other_methods_are_in_the_documents_with_their_sources():
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("switches.md", "camera-statistics.md")]
    table = [line for page in pages for line in page.splitlines() if line.startswith("| `")]
    switches = ("start_from", "memory.entries", "memory.momentum", "memory.temperature", "images_per_class")
    for name in (*switches, "margin", "independent_share", "keep_unclustered", "statistics.by_camera", "statistics.share"):
        (row,) = [line for line in table if line.startswith(f"| `{name}`")]
        assert "20" in row.split("|")[-2], f"{name} has no source"


def test_the_page_of_parameters_is_generated_from_the_settings():
    namespace = {"__name__": "parameter_tables"}
    exec((ROOT / "tests" / "parameter_tables.py").read_text(encoding="utf-8"), namespace)
    assert (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8") == namespace["page"](), (
        "run: python tests/parameter_tables.py > docs/parameters.md"
    )


def test_the_stored_sweep_varies_lambda_around_the_recipes_value():
    """Lambda has another meaning in every space: an example of another one would leave nothing reliable."""
    deployments = safe_load(PREFECT_FILE.read_text())["deployments"]
    (stored,) = [deployment["parameters"] for deployment in deployments if "grid" in deployment["parameters"]]
    value = RECIPES[stored["base"]["recipe"]].selection.min_similarity
    assert all(abs(other - value) <= 0.11 for other in stored["grid"]["selection.min_similarity"])
