"""Everything that a report reads of a run: its parameters, its metrics in MLflow, and its artifacts."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pul_core.arrays import Ints, Mask
from pul_core.clustering.centring import centre_by_camera
from pul_core.errors import DataError
from pul_core.identities import FIRST_GROUP, NO_CAMERA
from pul_core.scoring.protocols import FeatureSet
from tasks.store.artifacts import DamagedArtifactError, column
from tasks.store.config import read_config
from tasks.store.home import home
from tasks.store.readers import camera_names, camids
from tasks.store.run_files import Uris, digest_in, exists, inputs_of, read_named, run_files
from tasks.tracking.client import client
from tasks.tracking.results import all_metrics, find_run, run_id_of

Metrics = dict[str, float]


class Clustering(NamedTuple):
    """The clusters of an iteration, and which of their images were selected."""

    rows: Ints  # (n,) of the clustered images
    clusters: Ints  # (n,) -1: in no cluster
    similarity: npt.NDArray[np.float64]  # (n,) cosine to the own centre
    reliable: Mask  # (n,) selected


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run. Large artifacts are read when a section needs them, and not kept."""

    id: str
    mlflow_run_id: str
    experiment_id: str
    experiment: str
    flow_run_id: str | None
    status: str
    stop_reason: str | None
    recipe: str
    commit: str | None
    started: float  # seconds since the epoch
    parameters: dict[str, Any]
    resolved: list[dict[str, Any]]
    metrics: list[Metrics]  # of iteration 0, 1, 2, ...
    files: Uris
    iterations: dict[int, Uris]
    images: pa.Table = field(repr=False)
    camids: Ints = field(repr=False)
    pids: Ints | None = field(repr=False)

    @property
    def last(self) -> int:
        """Return the number of the last iteration that has artifacts and metrics."""
        return len(self.metrics) - 1

    @property
    def last_clustered(self) -> int | None:
        """Return the last iteration with clusters; None if there is only iteration 0."""
        numbers = [number for number in self.iterations if "clusters" in self.iterations[number] and number <= self.last]
        return max(numbers, default=None)

    @property
    def rejects(self) -> bool:
        """Return whether images in a cluster can be rejected. With lambda = -1 all of them are reliable."""
        return bool(self.parameters["selection"]["min_similarity"] > -1)

    @property
    def centred(self) -> bool:
        """Return whether features are centred, by camera or by style group, before they are clustered."""
        return bool(self.parameters.get("model", {}).get("centre_cameras"))

    @property
    def scored_centred(self) -> bool:
        """Return whether features are centred by camera before they are scored."""
        return self.centred and not self.parameters.get("statistics", {}).get("ignore_cameras")

    @cached_property
    def loop_camids(self) -> Ints:
        """Return what the loop takes for the camera of each image: its camera, or the style group that stands for it."""
        uri = self.iterations.get(0, {}).get("cameras")
        return camids(read_named(uri)) if uri and exists(uri) else self.camids

    @property
    def has_style_groups(self) -> bool:
        """Return whether style groups stand for cameras."""
        return bool((self.loop_camids <= FIRST_GROUP).any())

    def camera_name(self, camid: int) -> str:
        """Return the name of a camera in the data set, or its number if it has none."""
        return self.camera_names.get(int(camid), "unknown" if camid < 0 else str(camid))

    @cached_property
    def shows_style_groups(self) -> bool:
        """Return whether the report shows style groups, because the camera of no image in them is known."""
        grouped = self.loop_camids <= FIRST_GROUP
        return self.has_style_groups and bool((self.camids[grouped] == NO_CAMERA).all())

    @cached_property
    def shown_camids(self) -> Ints:
        """Return the camera of each image or, if cameras are unknown, its style group."""
        return self.loop_camids if self.shows_style_groups else self.camids

    def place_name(self, row: int) -> str:
        """Return in words which camera an image is from or, if cameras are unknown, which style group it is in."""
        camid = int(self.shown_camids[row])
        return f"style group {FIRST_GROUP - camid + 1}" if camid <= FIRST_GROUP else f"camera {self.camera_name(camid)}"

    @cached_property
    def camera_names(self) -> dict[int, str]:
        """Return the names of the cameras in the data set."""
        return camera_names(self.images)

    def paths(self, rows: Ints) -> list[str]:
        """Return the paths of images in the data set."""
        return [str(path) for path in self.images["path"].take(pa.array(rows)).to_pylist()]

    def clustering(self, iteration: int) -> Clustering:
        """Read the clusters and the selection of an iteration."""
        table, reliable = (read_named(self.iterations[iteration][name]) for name in ("clusters", "reliable"))
        selected = column(reliable, "row")[~column(reliable, "unclustered")]
        rows = column(table, "row")
        return Clustering(rows, column(table, "cluster"), column(table, "similarity"), np.isin(rows, selected))

    def train_features(self, iteration: int) -> tuple[Ints, npt.NDArray[np.float32]] | None:
        """Read the features that an iteration clustered, L2-normalised, and centred by camera or style group if the run does so.

        Returns:
            Rows (n,) and features (n, d), or None if they were removed.
        """
        uri = self.iterations.get(iteration, {}).get("features")
        if uri is None or not exists(uri):
            return None
        table = read_named(uri)
        rows, features = column(table, "row"), column(table, "feature")
        cameras = self.loop_camids[rows] if self.centred else np.full(len(rows), NO_CAMERA)
        return rows, centre_by_camera(features, cameras)  # without cameras this only normalises

    def scores(self, iteration: int) -> pa.Table | None:
        """Read the scores of an iteration's model; None if it has none."""
        uri = self.iterations.get(iteration, {}).get("scores")
        return read_named(uri) if uri and exists(uri) else None

    def query_and_gallery(self, iteration: int) -> tuple[FeatureSet, FeatureSet, Ints, Ints] | None:
        """Read the features from which an iteration's model was scored, prepared as they were for scoring.

        Returns:
            Query and gallery, and their rows; None if they were never computed or were removed since.
        """
        scores = self.scores(iteration)
        if scores is None or self.pids is None:
            return None
        inputs = inputs_of(scores)
        uris = [f"features/{str(inputs.get(side, ''))[:32]}.parquet" for side in ("query", "gallery")]
        if not all(map(exists, uris)):
            return None
        tables = [read_named(uri) for uri in uris]
        rows = [column(table, "row") for table in tables]
        features = [column(table, "feature") for table in tables]
        if inputs.get("centre_cameras"):
            centred = centre_by_camera(np.concatenate(features), self.camids[np.concatenate(rows)])
            features = np.split(centred, [len(rows[0])])
        query, gallery = (FeatureSet(values, self.pids[at], self.camids[at]) for values, at in zip(features, rows, strict=True))
        return query, gallery, rows[0], rows[1]


def read_run(reference: str | None) -> RunData:
    """Read a run.

    Args:
        reference: id, unique name or beginning of the id; None: the newest run.

    Raises:
        DataError: there is no such run on this machine, it has no finished iteration, or its files are damaged or missing.
    """
    run = find_run(reference)
    run_id = run_id_of(run)
    config = home() / "runs" / run_id / "config.json"
    metrics = all_metrics(run)
    files, iterations = run_files(run_id)
    if not config.is_file():
        raise DataError(f"run {run_id} has no folder {config.parent}: make the report on the machine that executed the run")
    if "images" not in files:
        raise DataError(f"run {run_id} no longer has the table of its images, because images of it were purged: start a new run")
    if 0 not in metrics or 0 not in iterations:
        raise DataError(f"run {run_id} has no finished iteration yet: wait until iteration 0 is done")
    number = next(number for number in range(len(metrics) + 1) if number not in metrics or number not in iterations)
    parameters, resolved = read_config(config)
    try:
        images = read_named(files["images"], ["row", "path", "camid", "camera", "split", "sha256", "problem"])
        pids = column(read_named(files["labels"], ["row", "pid"]), "pid") if "labels" in files else None
    except DamagedArtifactError as error:
        raise DataError(f"run {run_id}: {error}") from error
    return RunData(
        id=run_id,
        mlflow_run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        experiment=client().get_experiment(run.info.experiment_id).name,
        flow_run_id=run.data.tags.get("pul.flow_run_id"),
        status=run.info.status.lower(),
        stop_reason=run.data.tags.get("pul.stop_reason"),
        recipe=run.data.tags.get("pul.recipe", ""),
        commit=run.data.tags.get("mlflow.source.git.commit"),
        started=run.info.start_time / 1000,
        parameters=parameters,
        resolved=resolved,
        metrics=[metrics[at] for at in range(number)],
        files=files,
        iterations={at: iterations[at] for at in range(number)},
        images=images,
        camids=camids(images),
        pids=pids,
    )


def digests(uris: Uris) -> dict[str, str]:
    """Return the digest of each artifact by its readable name."""
    return {name: digest_in(uri) for name, uri in sorted(uris.items())}
