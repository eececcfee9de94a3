"""Step *estimate_statistics*: the statistics of a model and a target, from the target's training images."""

from pul_core.learning import camera_statistics
from pul_core.settings import Statistics
from tasks.engine.compute import prepare
from tasks.engine.progress import progress
from tasks.engine.steps import step
from tasks.store.artifacts import Artifact, read_table
from tasks.store.model_file import read_model
from tasks.store.readers import camids, open_pixels
from tasks.store.references import Compute, ImageSet, Pixels, TargetStatistics
from tasks.store.statistics_file import write_statistics


def statistics_of(
    model: Artifact, pixels: Pixels, images: ImageSet, *, settings: Statistics, seed: int, compute: Compute, iteration: int
) -> TargetStatistics | None:
    """Return the statistics by camera with which a model's features are extracted; None if they are those of the model.

    Args:
        model: the model.
        pixels: training images of the target.
        images: the target, for its cameras.
        settings: whether and how statistics are estimated.
        seed: of the choice of the images.
        compute: device and threads.
        iteration: of the model; names the task run.
    """
    if not settings.by_camera:
        return None
    statistics = estimate_statistics(model, pixels, images.images, settings=settings, seed=seed, compute=compute, iteration=iteration)
    return TargetStatistics(statistics=statistics, images=images.images)


@step("statistics-{iteration}")
def estimate_statistics(
    model: Artifact, pixels: Pixels, images: Artifact, *, settings: Statistics, seed: int, compute: Compute, iteration: int
) -> Artifact:
    """Write the statistics by camera of a model; see `pul_core.learning.camera_statistics.estimate_statistics`.

    Args:
        model: the model; it is not changed.
        pixels: training images of the target.
        images: the target's images.parquet, for the camera ids.
        settings: how many images are used.
        seed: of the choice of the images.
        compute: device and threads.
        iteration: of the model; names the task run.
    """
    prepare(compute)
    backbone, _ = read_model(model)
    rows, decoded = open_pixels(pixels)
    cameras = camids(read_table(images, ["camid"]))[rows]
    passes = camera_statistics.count_forward_passes(cameras, settings, seed=seed)
    with progress(f"estimate statistics {iteration}", passes) as progress_bar:
        statistics = camera_statistics.estimate_statistics(
            backbone, decoded, cameras, settings, seed=seed, device=compute.device, on_batch=progress_bar.advance
        )
        progress_bar.note = f", {len(statistics.camids)} cameras with statistics of their own"
    return write_statistics(statistics)
