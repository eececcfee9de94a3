"""The model of a run's iteration, with its statistics by camera, its model card, and where its target is."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from pul_core.errors import DataError
from pul_core.learning.camera_statistics import CameraStatistics
from pul_core.settings import Statistics
from tasks.models import model_file
from tasks.store.config import read_config, resolve_plan
from tasks.store.licences import Licence, licence_in
from tasks.store.model_file import ModelConfig, read_model_bytes
from tasks.store.runs import find_run_folder
from tasks.store.statistics_file import statistics_of_iteration
from tasks.store.weights_file import read_metadata
from tasks.tracking.model_card import model_card
from tasks.tracking.results import find_run


class RunModel(NamedTuple):
    """What is exported."""

    run_id: str
    folder: Path  # of the run
    iteration: int
    backbone: nn.Module
    config: ModelConfig
    statistics: CameraStatistics | None
    statistics_settings: Statistics
    target: str  # as the run's config names it
    centre_cameras: bool
    licence: Licence
    card: dict[str, Any]


def read_run_model(reference: str, iteration: int | None) -> RunModel:
    """Read the model of a run.

    Args:
        reference: the run's id, its name or a prefix of its id; RUN/iteration=N names an iteration, too.
        iteration: None: the last one.

    Raises:
        DataError: there is no such run or iteration on this disk.
    """
    name, _, stated = reference.partition("/iteration=")
    folder = find_run_folder(name)
    if folder is None:
        raise DataError(f"there is no run {name!r} on this disk: give the id of a run, as pul results prints it")
    number = iteration if iteration is not None else int(stated) if stated.isdigit() else None
    with model_file(f"{folder.name}/iteration={number}" if number is not None else folder.name) as file:
        backbone, config = read_model_bytes(file.read_bytes())
        licence = licence_in(read_metadata(file))
        digest = file.resolve().stem
        number = int(file.parent.name.split("=")[1])
    parameters, _ = read_config(folder / "config.json")
    plan = resolve_plan(parameters)
    statistics = statistics_of_iteration(folder / f"iteration={number}")
    digests = {"model file (first 32 digits of SHA-256)": digest}
    card = model_card(find_run(folder.name), number, licence=licence, digests=digests)
    return RunModel(
        run_id=folder.name,
        folder=folder,
        iteration=number,
        backbone=backbone.eval(),
        config=config,
        statistics=statistics,
        statistics_settings=plan.statistics,
        target=str(parameters["target"]),
        centre_cameras=plan.centre_scores,
        licence=licence,
        card=card,
    )
