"""Step *estimate_statistics*: the statistics of a model and a target, from the target's training images."""

from dataclasses import replace

from pul_core.learning import camera_statistics
from pul_core.recipes import MODERN
from pul_core.settings import Statistics
from tasks.engine.compute import prepare
from tasks.engine.progress import progress
from tasks.engine.steps import step
from tasks.models import named_run
from tasks.store.artifacts import Artifact, read_table
from tasks.store.config import read_config, resolve_plan
from tasks.store.model_file import read_model
from tasks.store.readers import camids, open_pixels
from tasks.store.references import Compute, Pixels, TargetStatistics
from tasks.store.statistics_file import write_statistics


def statistics_of(
    model: Artifact, pixels: Pixels, cameras: Artifact, *, settings: Statistics, seed: int, compute: Compute, iteration: int
) -> TargetStatistics | None:
    """Return the statistics with which a model's features are extracted; None if they are those of the model.

    Args:
        model: the model.
        pixels: training images of the target.
        cameras: the target's images.parquet or cameras.parquet, for the column ``camid``.
        settings: whether and how statistics are estimated.
        seed: of the choice of the images.
        compute: device and threads.
        iteration: of the model; names the task run.
    """
    if not settings.by_camera:
        return None
    statistics = estimate_statistics(model, pixels, cameras, settings=settings, seed=seed, compute=compute, iteration=iteration)
    return TargetStatistics(statistics=statistics, cameras=cameras)


def settings_of(model: str) -> Statistics:
    """Return how the statistics of a model are estimated on other data: as in its run if it used them, else as in `modern`."""
    run = named_run(model)
    if run and (config := run[0] / "config.json").exists() and (settings := resolve_plan(read_config(config)[0]).statistics).by_camera:
        return settings
    return replace(MODERN.statistics, style_groups=0)


@step("statistics-{iteration}")
def estimate_statistics(
    model: Artifact, pixels: Pixels, cameras: Artifact, *, settings: Statistics, seed: int, compute: Compute, iteration: int
) -> Artifact:
    """Write the statistics of a model and a target; see `pul_core.learning.camera_statistics.estimate_statistics`.

    Args:
        model: the model; it is not changed.
        pixels: training images of the target.
        cameras: see `statistics_of`.
        settings: how many images are used, how statistics are mixed with those of the model, and how features are whitened.
        seed: of the choice of the images.
        compute: device and threads.
        iteration: of the model; names the task run.
    """
    prepare(compute)
    backbone, _ = read_model(model)
    rows, decoded = open_pixels(pixels)
    camids_of_rows = camids(read_table(cameras, ["camid"]))[rows]
    passes = camera_statistics.count_forward_passes(camids_of_rows, settings, seed=seed)
    with progress(f"estimate statistics {iteration}", passes) as progress_bar:
        statistics = camera_statistics.estimate_statistics(
            backbone, decoded, camids_of_rows, settings, seed=seed, device=compute.device, on_batch=progress_bar.advance
        )
        progress_bar.note = f", {len(statistics.camids)} cameras or style groups with statistics of their own"
    return write_statistics(statistics)
