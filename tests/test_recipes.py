"""Recipes fill exactly what the core takes, and a run's saved config repeats it."""

import inspect
import json
from pathlib import Path

import pytest
from yaml import safe_load

from deployments.servers import PREFECT_FILE
from flows.config import FineTuning, Training
from flows.preflight import plan_of
from flows.pretrain import pretrain
from flows.pul import pul
from flows.recipes import RECIPES
from flows.sweep import sweep
from pul_core.clustering.density import cluster_by_density
from pul_core.clustering.kmeans import cluster
from pul_core.learning.training import begin_training, train
from pul_core.selection import select_reliable
from pul_core.stopping import reason_to_stop
from tasks.training import BEGIN

CORE = {
    "pretraining": (begin_training, train),
    "fine_tuning": (begin_training, train),
    "clustering": (cluster, cluster_by_density),
    "selection": (select_reliable,),
    "stopping": (reason_to_stop,),
}
CHOICES = {  # which of the functions, on which values; which of the models
    "clustering": {"algorithm", "whitening", "shrinkage", "camera_aware"},
    "fine_tuning": {"start_from"},
}
ONLY_FINE_TUNING = set(FineTuning.model_fields) - set(Training.model_fields)
FROM_THE_RUN = {"seed", "device", "bf16", "on_batch", "num_classes", "classes", "num_images"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("section", CORE)
def test_every_parameter_of_the_core_is_in_the_form_and_nothing_else(recipe, section):
    takes = set()
    for function in CORE[section]:
        takes |= {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    takes |= CHOICES.get(section, set())
    takes -= FROM_THE_RUN | {"stopping": {"num_clusters"}, "pretraining": ONLY_FINE_TUNING}.get(section, set())
    assert set(RECIPES[recipe][section].model_dump()) == takes


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_leaves_nothing_open_but_the_number_of_clusters(recipe):
    plan = plan_of({"recipe": recipe, "target": "x"})
    left = {f"{name}.{key}" for name in RECIPES[recipe] for key, value in getattr(plan, name).model_dump().items() if value is None}
    assert left == {"clustering.num_clusters"}


def test_paper_fine_tunes_slower_than_it_trains_the_source_and_modern_as_fast():
    rates = {"backbone_learning_rate", "classifier_learning_rate"}
    paper, modern = RECIPES["paper"], RECIPES["modern"]
    assert paper["fine_tuning"].model_dump(include=rates) == dict.fromkeys(rates, 0.0002)
    assert (
        paper["pretraining"].model_dump(include=rates) == modern["fine_tuning"].model_dump(include=rates) == dict.fromkeys(rates, 0.00035)
    )


def test_no_description_has_what_the_form_takes_for_a_tag():
    """Prefect's page draws descriptions as Markdown, HTML included: `(?P<camera>)` lost its name there."""
    for flow in (pul, pretrain, sweep):
        drawn = json.dumps(flow.parameters.model_dump())
        assert '"description"' in drawn and "<" not in drawn, flow.name


def test_a_saved_config_repeats_itself():
    plan = plan_of({"recipe": "released-code", "target": "x", "fine_tuning": {"epochs": 3}, "seed": 7})
    assert plan_of(plan.model_dump()) == plan


def test_begin_and_train_share_no_name():
    assert set(BEGIN) <= set(inspect.signature(begin_training).parameters)
    assert not set(BEGIN) & set(inspect.signature(train).parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"recipe": "best"}, "no recipe 'best'"),
        ({"lambda": 1}, "no parameter 'lambda'"),
        ({"selection": {"min_similarity": 2}}, "less than or equal to 1"),
        ({"fine_tuning": {"epoch": 2}}, "Extra inputs"),
        ({"clustering": {"num_clusters": 0}}, "greater than or equal to 1"),
        ({"fine_tuning": {"start_from": "middle"}}, "'original' or 'last'"),
        ({"fine_tuning": {"loss": "triplet"}}, "'softmax', 'cluster_memory' or 'image_memory'"),
        ({"fine_tuning": {"memory_momentum": 1.1}}, "less than or equal to 1"),
        ({"fine_tuning": {"temperature": 0}}, "greater than 0"),
        ({"fine_tuning": {"images_per_class": -1}}, "greater than or equal to 0"),
        ({"fine_tuning": {"images_per_class": 33}}, "a batch of 32 images does not hold 33 of one class"),
        ({"pretraining": {"images_per_class": 9, "batch_size": 8}}, "a batch of 8 images does not hold 9 of one class"),
        ({"clustering": {"margin": 0.5}}, "0.45 less and plus the margin"),
        ({"clustering": {"margin": 0.2, "max_distance": 0.9}}, "0.9 less and plus the margin"),
        ({"pretraining": {"loss": "softmax"}}, "Extra inputs"),
        ({"pretraining": {"start_from": "last"}}, "Extra inputs"),
    ],
)
def test_what_does_not_exist_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        plan_of({"target": "x"} | parameters)


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_recipe_throws_the_switches_of_other_methods(recipe):
    plan = plan_of({"recipe": recipe, "target": "x"})
    assert (plan.fine_tuning.start_from, plan.fine_tuning.loss) == ("original", "softmax")
    assert (plan.fine_tuning.images_per_class, plan.pretraining.images_per_class) == (0, 0)
    assert (plan.clustering.margin, plan.selection.keep_unclustered) == (0, False)


def test_the_switches_of_other_methods_are_in_the_documents_with_their_sources():
    page = Path(__file__).parent.parent.joinpath("docs", "method.md").read_text(encoding="utf-8")
    table = [line for line in page.splitlines() if line.startswith("| `")]
    for name in sorted(ONLY_FINE_TUNING | {"images_per_class", "margin", "independent_share", "keep_unclustered"}):
        (row,) = [line for line in table if line.startswith(f"| `{name}`")]
        assert "20" in row.split("|")[-2], f"{name} has no source"


def test_a_run_of_before_the_switches_is_repeated_with_what_it_did():
    saved = plan_of({"target": "x"}).model_dump()
    later = {
        "pretraining": {"images_per_class"},
        "fine_tuning": {"images_per_class"} | ONLY_FINE_TUNING,
        "clustering": {"margin", "independent_share"},
        "selection": {"keep_unclustered"},
    }
    old = saved | {
        section: {name: value for name, value in saved[section].items() if name not in names} for section, names in later.items()
    }
    assert plan_of(old).model_dump() == saved


def test_a_run_of_before_whitening_is_repeated_without_it():
    old = plan_of({"target": "x", "selection": {"min_similarity": 0.92}}).model_dump()
    for name in ("whitening", "shrinkage", "camera_aware", "margin", "independent_share"):
        del old["clustering"][name]
    plan = plan_of(old)
    assert (plan.clustering.whitening, plan.selection.min_similarity) == (0, 0.92)
    assert plan_of({"target": "x", "clustering": {"num_restarts": 3}}).clustering.whitening > 0


def test_the_stored_sweep_looks_around_the_recipes_lambda():
    """Lambda means something else in every space: an example of another one would leave nothing reliable."""
    (stored,) = [found["parameters"] for found in safe_load(PREFECT_FILE.read_text())["deployments"] if "grid" in found["parameters"]]
    least = RECIPES[stored["base"]["recipe"]]["selection"].min_similarity
    assert all(abs(value - least) <= 0.11 for value in stored["grid"]["selection.min_similarity"])


def test_the_published_numbers_of_the_released_code():
    plan = plan_of({"recipe": "released-code", "target": "x"})
    assert (plan.selection.min_similarity, plan.stopping.max_iterations, plan.clustering.num_restarts) == (0.85, 25, 10)
    assert (plan.fine_tuning.epochs, plan.pretraining.epochs, plan.fine_tuning.batch_size) == (20, 40, 16)
    assert (plan.fine_tuning.backbone_learning_rate, plan.fine_tuning.dropout, plan.fine_tuning.flip_probability) == (0.001, 0.5, 0)
