"""The cache key of a step: everything its result depends on, and nothing else."""

import importlib
import json
import re
import sys
import textwrap
from dataclasses import fields

import pytest

from pul_core.recipes import RECIPES
from pul_core.settings import Augmentation, Clustering, Dbscan, Memory, Optimisation, Recipe, Statistics, Training
from tasks.engine import code, steps
from tasks.engine.steps import cache_token, step_key
from tasks.statistics import statistics_of
from tasks.store.artifacts import Artifact
from tasks.store.config import parameters_of, resolve_plan
from tasks.store.references import Compute, ImageSet, Pixels, TargetStatistics

ARTIFACT = Artifact(kind="features", uri="features/ab.parquet", sha256="ab" * 32, rows=3)
COMPUTE = Compute(device="cpu", threads=2, dtype="float32")


def features(model, seed):
    """Stand for a step."""


def key(**changes):
    return step_key(features, {"model": ARTIFACT, "seed": 0, "compute": COMPUTE, "settings": Training(), "iteration": 1} | changes)


def test_a_key_repeats():
    assert key() == key()


@pytest.mark.parametrize(
    "change",
    [
        {"model": ARTIFACT.model_copy(update={"sha256": "cd" * 32})},
        {"seed": 1},
        {"settings": Training(epochs=9)},
        {"settings": Training(augmentation=Augmentation(colour_share=0.1))},
        {"compute": COMPUTE.model_copy(update={"device": "cuda"})},
        {"compute": COMPUTE.model_copy(update={"dtype": "bfloat16"})},
    ],
)
def test_inputs_that_determine_the_result_change_the_key(change):
    assert key(**change) != key()


@pytest.mark.parametrize(
    "change",
    [
        {"iteration": 2},
        {"compute": COMPUTE.model_copy(update={"threads": 1})},
        {"model": ARTIFACT.model_copy(update={"uri": "elsewhere", "seconds": 9.0})},
    ],
)
def test_the_iteration_the_thread_count_and_the_location_do_not_change_the_key(change):
    assert key(**change) == key()


def test_the_device_index_does_not_change_the_key():
    first, second = (key(compute=COMPUTE.model_copy(update={"device": device})) for device in ("cuda:0", "cuda:1"))
    assert first == second == key(compute=COMPUTE.model_copy(update={"device": "cuda"}))


@pytest.mark.parametrize(
    ("unread", "read"),
    [
        (Training(optimisation=Optimisation(momentum=0.5)), Training(optimisation=Optimisation(optimiser="sgd", momentum=0.5))),
        (Training(memory=Memory(temperature=0.1)), Training(memory=Memory(entries="clusters", temperature=0.1))),
        (Clustering(whitening=0, shrinkage=0.1), Clustering(whitening=0.7, shrinkage=0.1)),
        (Statistics(min_images=9), Statistics(by_camera=True, min_images=9)),
        (Dbscan(independent_share=0.5), Dbscan(margin=0.02, independent_share=0.5)),
    ],
)
def test_a_setting_counts_only_where_it_is_read(unread, read):
    defaults = {Clustering: Clustering(whitening=0)}.get(type(unread), type(unread)())
    assert cache_token(unread) == cache_token(defaults)
    flat = str(cache_token(read))
    assert flat != str(cache_token(type(read)())) and re.search(r"momentum|temperature|shrinkage|independent_share|min_images", flat)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_plan_that_is_read_from_its_config_has_the_same_keys(recipe):
    """Its numbers are those of the form, 0.0 where the recipe has 0."""
    plan = resolve_plan({"target": "x", "recipe": recipe})
    repeated = resolve_plan(json.loads(json.dumps(parameters_of(plan))))
    for section in fields(Recipe):
        keys = {step_key(features, {"settings": getattr(each, section.name)}) for each in (plan, repeated)}
        assert len(keys) == 1, section.name


def test_the_root_the_name_and_the_labels_of_a_data_set_do_not_change_the_key():
    images = ImageSet(name="a", root="/a", layout="folder", images=ARTIFACT, labels=ARTIFACT, splits={})
    changed = {"root": "/b", "name": "b", "labels": ARTIFACT.model_copy(update={"sha256": "ff" * 32})}
    assert key(images=images) == key(images=images.model_copy(update=changed))


def test_the_cameras_of_a_data_set_are_part_of_a_key_only_if_they_are_read():
    """The step estimate_statistics would fail: there are no such files."""
    pixels = Pixels(decoded=ARTIFACT, pixels=ARTIFACT, height=64, width=32)
    arguments = {"settings": Statistics(), "seed": 0, "compute": COMPUTE, "iteration": 0}
    assert statistics_of(ARTIFACT, pixels, ARTIFACT, **arguments) is None
    statistics = TargetStatistics(statistics=ARTIFACT, cameras=ARTIFACT)
    changed = statistics.model_copy(update={"cameras": ARTIFACT.model_copy(update={"sha256": "cd" * 32})})
    assert key(statistics=None) != key(statistics=statistics) != key(statistics=changed)


def test_the_input_size_is_part_of_decoded_images():
    pixels = Pixels(decoded=ARTIFACT, pixels=ARTIFACT, height=64, width=32)
    assert cache_token(pixels) != cache_token(pixels.model_copy(update={"height": 32, "width": 64}))


def test_a_library_version_changes_the_key(monkeypatch):
    before = key()
    monkeypatch.setattr(steps, "library_versions", lambda: {"torch": "0.0"})
    assert key() != before


def test_arrays_are_refused_as_inputs():
    import numpy as np

    with pytest.raises(TypeError, match="plain value, settings or a reference"):
        key(model=np.zeros(3))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A function that writes the modules of a small project and returns the digest of the code that its step reaches."""
    folder = tmp_path / "probe_project"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(code, "PROJECT", ("probe_project",))

    def digest(step: str, **modules: str) -> str:
        for name, source in {"__init__": "", "step": step, **modules}.items():
            (folder / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        for name in [name for name in sys.modules if name.startswith("probe_project")]:
            del sys.modules[name]
        code.code_digest.cache_clear()
        code._code_of.cache_clear()
        return code.code_digest("probe_project.step", "run")

    yield digest
    code.code_digest.cache_clear()
    code._code_of.cache_clear()


STEP = "from probe_project.core import f\n\ndef run(x):\n    return f(x)\n"
CORE = '''
    def f(x):
        """Add one."""
        logger.info("adding to %d", x)
        if x < 0:
            raise ValueError(f"{x} is negative")
        return x + 1
'''


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("x + 1", "x + 2", True),
        ("x < 0", "x < 1", True),
        ("ValueError", "TypeError", True),
        ("Add one.", "Add 1.", False),
        ("is negative", "is below 0", False),
        ("adding to %d", "adds to %d", False),
        ("return x + 1", "return x + 1  # a comment", False),
    ],
)
def test_comments_docstrings_and_messages_do_not_count(package, old, new, counts):
    assert old in CORE
    assert (package(STEP, core=CORE.replace(old, new)) != package(STEP, core=CORE)) is counts


def test_a_logarithm_is_not_taken_for_a_log_line(package):
    core = "import numpy as np\n\ndef f(x):\n    return np.log(2)\n"
    assert package(STEP, core=core) != package(STEP, core=core.replace("2", "3"))


@pytest.mark.parametrize(
    "statement", ["from probe_project import core", "import probe_project.core as core", "from probe_project.core import f"]
)
def test_every_form_of_import_is_followed(package, statement):
    call = "f(x)" if statement.endswith(" f") else "core.f(x)"
    step = f"{statement}\n\ndef run(x):\n    return {call}\n"
    core = "from probe_project import deeper\n\ndef f(x):\n    return deeper.g(x)\n"
    before = package(step, core=core, deeper="def g(x):\n    return 1\n")
    assert package(step, core=core, deeper="def g(x):\n    return 2\n") != before


def test_definitions_of_the_step_module_that_the_step_does_not_use_do_not_count(package):
    step = STEP + "\ndef report(x):\n    return x\n\nLIMIT = 1\n\ndef helper(x):\n    return x + LIMIT\n"
    used = step.replace("return f(x)", "return f(helper(x))")
    assert package(step, core=CORE) == package(step.replace("return x\n", "return -x\n").replace("LIMIT = 1", "LIMIT = 2"), core=CORE)
    assert package(used, core=CORE) != package(used.replace("LIMIT = 1", "LIMIT = 2"), core=CORE)


@pytest.mark.parametrize(
    "use",
    [
        "@f\ndef run(x):\n    return x",
        "def run(x, function=f):\n    return function(x)",
        "class Base(f):\n    pass\n\nclass Derived(Base):\n    pass\n\ndef run(x):\n    return Derived(x)",
        "def run(x: f):\n    return x",
        "async def helper(x):\n    return f(x)\n\ndef run(x):\n    return helper(x)",
        "first, second = f(1), 2\n\ndef run(x):\n    return second",
        "table = {}\ntable['f'] = f\n\ndef run(x):\n    return table['f'](x)",
    ],
)
def test_a_name_is_followed_wherever_it_is_used(package, use):
    step = f"from probe_project.core import f\n\n{use}\n"
    assert package(step, core=CORE) != package(step, core=CORE.replace("x + 1", "x + 2"))


@pytest.mark.parametrize(
    "imports",
    [
        "from probe_project.core import *",
        "from .core import f",
        "from . import core\nf = core.f",
        "try:\n    from probe_project.core import f\nexcept ImportError:\n    f = None",
        "import probe_project.core as core\nf = core.f",
        "import probe_project.core\nf = probe_project.core.f",
    ],
)
def test_every_import_at_the_top_of_the_step_module_is_followed(package, imports):
    step = f"{imports}\n\ndef run(x):\n    return f(x)\n"
    assert package(step, core=CORE) != package(step, core=CORE.replace("x + 1", "x + 2"))


@pytest.mark.parametrize(
    "statement",
    [
        "torch.backends.cudnn.benchmark = VALUE",
        "torch.backends.cudnn.benchmark = benchmark = VALUE",
        "options['benchmark'] = VALUE",
        "Image.MAX_IMAGE_PIXELS = LIMIT\nLIMIT = VALUE",
        "torch.set_float32_matmul_precision(VALUE)",
        "LIMIT += VALUE",
        "if condition:\n    torch.set_default_dtype(VALUE)",
        "for option in options:\n    option.set(VALUE)",
        "del options[VALUE]",
    ],
)
def test_a_top_level_statement_with_an_effect_always_counts(package, statement):
    def step(value):
        return f"{STEP}\n{statement.replace('VALUE', value)}\n"

    assert package(step("1"), core=CORE) != package(step("2"), core=CORE)


def test_the_code_of_packages_counts(package):
    assert package(STEP, core=CORE) != package(STEP, core=CORE, __init__="LIMITS = {}\nLIMITS['pixels'] = 1\n")


def test_a_docstring_can_be_added(package):
    assert package(STEP, core=CORE) == package('"""The step."""\n' + STEP, core='"""The core."""\n' + textwrap.dedent(CORE))


STEPS = {
    "decode": "tasks.decode",
    "pretrain": "tasks.training",
    "fine_tune": "tasks.training",
    "estimate_statistics": "tasks.statistics",
    "extract_features": "tasks.extract",
    "cluster": "tasks.cluster",
    "select": "tasks.cluster",
    "evaluate": "tasks.evaluate",
    "suggest": "tasks.suggest",
}
TRAINING = {"pretrain", "fine_tune"}
EXTRACTION = TRAINING | {"extract_features"}
INFERENCE = EXTRACTION | {"estimate_statistics"}
ALL = set(STEPS)
# An edit appends a definition to a module, which is code; `MODULE:TEXT` replaces a text in it instead.
EDITS = {
    "pul_core.learning.augmentation": TRAINING,
    "pul_core.learning.training": TRAINING,
    "pul_core.learning.memory": TRAINING,
    "pul_core.learning.batches": TRAINING,
    "pul_core.seeds": TRAINING,
    "pul_core.learning.backbone": INFERENCE,
    "pul_core.learning.constants": INFERENCE,
    "pul_core.learning.feeding": INFERENCE,
    "pul_core.learning.precision": INFERENCE,
    "pul_core.learning.camera_statistics": INFERENCE,
    "pul_core.learning.extraction": EXTRACTION,
    "pul_core.clustering.kmeans": {"cluster"},
    "pul_core.clustering.whitening": INFERENCE | TRAINING | {"cluster"},
    "pul_core.clustering.density": {"cluster", "suggest"},
    "pul_core.clustering.jaccard": {"cluster", "suggest", "evaluate"},
    "pul_core.clustering.neighbours": {"cluster", "select", "suggest", "evaluate"},
    "pul_core.clustering.centring": {"cluster", "suggest", "evaluate"},
    "pul_core.clustering.centres": {"cluster", "select", "suggest", "evaluate"},
    "pul_core.clustering.suggestion": {"suggest"},
    "pul_core.selection": {"select"},
    "pul_core.few_labels": {"cluster", "select"},
    "pul_core.scoring.ranks": {"evaluate"},
    "pul_core.scoring.protocols": {"evaluate"},
    "pul_core.scoring.reranking": {"evaluate"},
    "pul_core.synthetic.people": set(),
    "pul_core.settings": set(),
    "pul_core.recipes": set(),
    "pul_core.errors": set(),
    "pul_core.stopping": set(),
    "pul_core.self_paced": set(),
    "tasks.data.manifests": set(),
    "tasks.data.published_layouts": set(),
    "tasks.data.check": set(),
    "tasks.index": set(),
    "tasks.preflight": set(),
    "tasks.store.artifacts": ALL,
    "tasks.store.config": set(),
    "tasks.store.scores": set(),
    "tasks.store.model_file": INFERENCE,
    "tasks.store.statistics_file": {"extract_features", "estimate_statistics"},
    "tasks.engine.steps": set(),
    "tasks.engine.checkpoints": set(),
    "tasks.engine.compute": set(),
    "tasks.tracking.runs": set(),
    "tasks.tracking.metrics": set(),
    "tasks.operations.sweeps": set(),
    "flows.pul": set(),
    "deployments.cli": set(),
}


def step_digests():
    """Return the digest of the code that each step reaches."""
    code.code_digest.cache_clear()
    return {name: code.code_digest(module, name) for name, module in STEPS.items()}


@pytest.fixture(scope="module")
def unedited():
    """The digests of the steps before any edit."""
    return step_digests()


@pytest.fixture
def changed_steps(monkeypatch, unedited):
    """A function that edits the source of a module and returns the names of the steps whose code digest changes."""
    original = code.read_source

    def changed(module, edit):
        monkeypatch.setattr(code, "read_source", lambda name: edit(original(name)) if name == module else original(name))
        assert edit(original(module)) != original(module), "the edit does nothing"
        return {name for name, digest in step_digests().items() if digest != unedited[name]}

    yield changed
    code.code_digest.cache_clear()


@pytest.mark.parametrize("module", EDITS)
def test_an_edit_changes_the_keys_of_the_steps_that_use_the_code(changed_steps, module):
    assert changed_steps(module, lambda source: source + "\n\ndef added_by_the_test():\n    return 1\n") == EDITS[module]


@pytest.mark.parametrize("module", sorted({*EDITS, *STEPS.values()}))
def test_rewording_docstrings_and_messages_changes_no_key(changed_steps, module):
    def reword(source):
        source = re.sub(r'^"""', '"""Reworded. ', source)
        return re.sub(r"(raise \w+\(\s*f?\")", r"\1Reworded: ", source)

    assert changed_steps(module, reword) == set()


def test_every_step_is_in_the_table():
    found = set()
    for module in (
        "decode",
        "training",
        "extract",
        "statistics",
        "cluster",
        "evaluate",
        "suggest",
        "models",
        "few_labels",
        "index",
        "preflight",
    ):
        loaded = importlib.import_module(f"tasks.{module}")
        found |= {name for name, value in vars(loaded).items() if getattr(getattr(value, "task", None), "persist_result", False)}
    assert found == ALL
