"""examples/pul_by_hand.py: short, on the core alone, the same models as the flow tensor by tensor, and a loop that learns."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pul_core.recipes import RECIPES
from pul_core.synthetic import people
from pul_core.synthetic.people import Sizes
from tasks.store.config import resolve_plan

FILE = Path(__file__).parents[1] / "examples" / "pul_by_hand.py"
SMALL = Sizes(train_identities=8, train_images=48, test_identities=4, queries=8, gallery_images=24)


@pytest.fixture
def by_hand():
    """The example as a module, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load_example()
    torch.set_num_threads(threads)


def load_example():
    spec = importlib.util.spec_from_file_location("pul_by_hand", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_at_most_120_lines():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 120


def test_it_imports_no_orchestration_tracking_or_tables():
    script = "import json, runpy, sys; runpy.run_path(sys.argv[1]); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script, FILE], capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert {"pul_core", "torch", "numpy", "PIL"} <= modules
    assert not {"prefect", "mlflow", "pydantic", "pandas", "pyarrow", "fsspec", "tasks", "flows", "deployments"} & modules


@pytest.mark.parametrize("domain", ["source", "target"])
def test_drawn_people_have_the_pixels_of_the_steps(by_hand, home, monkeypatch, domain):
    from tasks.decode import decode
    from tasks.index import index
    from tasks.store.artifacts import column, read_table
    from tasks.store.readers import open_pixels

    monkeypatch.setitem(people.SIZES, domain, SMALL)
    images = index.fn(f"synthetic:10/{domain}", domain)
    for split in ("train", "query", "gallery"):
        ours = by_hand.read_split(f"synthetic:10/{domain}", split, (64, 32))
        rows, pixels = open_pixels(decode.fn(images, split=split, height=64, width=32))
        np.testing.assert_array_equal(ours.images, pixels)
        np.testing.assert_array_equal(ours.pids, column(read_table(images.labels), "pid")[rows])
        np.testing.assert_array_equal(ours.camids, column(read_table(images.images), "camid")[rows])


@pytest.fixture(scope="module")
def drawn_pair(tmp_path_factory):
    """Folders of drawn people in the layout of Market-1501: a source and a target."""
    from tasks.data.synthesize import synthesize_domain

    root = tmp_path_factory.mktemp("drawn")
    return [str(synthesize_domain(root, domain, seed=10, sizes=SMALL, processes=1)) for domain in ("source", "target")]


SIZES = {
    "paper": {"kmeans": {"num_clusters": 8}, "selection": {"min_similarity": 0.4}},
    "modern": {"dbscan": {"num_neighbours": 6, "num_averaged": 2, "max_distance": 0.6}},
    "released-code": {"kmeans": {"num_clusters": 8}},
}


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("recipe", RECIPES)
def test_its_models_equal_those_of_the_flow_tensor_by_tensor(by_hand, module_home, tiny, drawn_pair, recipe):
    from flows.pul import pul
    from tasks.tracking.results import read_results

    source, target = drawn_pair
    kept = {name: tiny[name] for name in ("model", "pretraining", "fine_tuning", "stopping", "machine")}
    parameters = kept | SIZES[recipe] | {"recipe": recipe, "source": source, "target": target, "seed": 4}
    results = read_results(pul(**parameters))
    by_flow = [module_home / "runs" / results["run"] / f"iteration={t}" / "model.safetensors" for t in range(3)]
    assert len(results["iterations"]) == len(by_flow)
    assert len({file.resolve() for file in by_flow}) == 3, "three different models"
    iterations = list(by_hand.adapt(source, target, resolve_plan(parameters), 4))
    for (model, scores, num_reliable, stop), file, row in zip(iterations, by_flow, results["iterations"], strict=True):
        tensors, expected = model.state_dict(), load_file(file)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        assert (scores.mean_ap, scores.cmc[0]) == (row["mAP"], row["rank_1"])
        assert (num_reliable or None) == row["reliable_set_size"]
        assert stop == (results["stop_reason"] if row["iteration"] == 2 else None)
