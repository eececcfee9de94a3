"""References: the small frozen values that tasks pass to each other instead of data, which stay in files."""

from pydantic import BaseModel, ConfigDict, Field

from pul_core.settings import Dtype
from tasks.store.artifacts import Artifact


class Reference(BaseModel):
    """A frozen value."""

    model_config = ConfigDict(frozen=True)


class ImageSet(Reference):
    """An indexed data set. Its root (the present location of the files), labels and notes do not enter cache keys.

    ``notes`` are what was not read, or not as it is written, and what to do, each with the number of images.
    """

    name: str
    root: str
    layout: str
    images: Artifact
    labels: Artifact | None
    splits: dict[str, int]
    notes: dict[str, int] = Field(default_factory=dict)

    def cache_token(self) -> str:
        """Return what enters a cache key: the digest of images.parquet."""
        return self.images.sha256

    @property
    def scorable(self) -> bool:
        """Return whether there are labelled queries and a gallery."""
        return self.labels is not None and self.splits.get("query", 0) > 0 and self.splits.get("gallery", 0) > 0


class Pixels(Reference):
    """The decoded images of one split. ``decoded`` has (row, position, error): position in the file, or why the image was skipped."""

    decoded: Artifact
    pixels: Artifact
    height: int
    width: int


class Clusters(Reference):
    """``clusters`` has (row, cluster, similarity, similarity_any); ``centres`` has (row, cluster, size, feature)."""

    clusters: Artifact
    centres: Artifact
    num_clusters: int
    num_single_image_clusters: int


class Labelled(Reference):
    """``labelled`` has (row, class): the target images whose identities training may use."""

    labelled: Artifact
    num_identities: int


class Reliable(Reference):
    """``reliable`` has (row, pseudo_label, similarity, labelled, unclustered): the images to fine-tune on.

    Besides the selected images these are the labelled ones, and unclustered images that are classes of their own, with similarity 1.
    ``similar`` has (pseudo_label, similar): the classes that may be parts of one person, in both directions.
    """

    reliable: Artifact
    num_classes: int
    similar: Artifact | None = None
    num_labelled: int = 0
    num_unclustered: int = 0

    @property
    def size(self) -> int:
        """Return n_t, the number of selected images."""
        return self.reliable.rows - self.num_labelled - self.num_unclustered


class TrainedModel(Reference):
    """``model`` is a model file; ``training`` has one row per epoch."""

    model: Artifact
    training: Artifact


class TargetStatistics(Reference):
    """``statistics`` of a model on a target has (layer, camid, images, mean, variance, transform); ``cameras`` has (camid)."""

    statistics: Artifact
    cameras: Artifact


class Compute(Reference):
    """What a step computes on, and how."""

    device: str
    threads: int
    dtype: Dtype = "float32"
    deterministic: bool = False
    batch_size: int | None = None  # images per batch of feature extraction; None: it follows the device

    def cache_token(self) -> dict[str, str | bool]:
        """Return what enters a cache key: the kind of device, the precision and, on a GPU, whether its algorithms are deterministic.

        The number of threads and the batch size, which change rounding only, are recorded but not part of keys.
        """
        kind = self.device.partition(":")[0]
        return {"device": kind, "dtype": self.dtype} | ({"deterministic": self.deterministic} if kind != "cpu" else {})


class Iteration(Reference):
    """The artifacts of an iteration. Iteration 0, the original model, only has a model, its scores, its statistics and the cameras.

    ``cameras`` is the table of cameras, or of the style groups that stand for them in all iterations.

    ``scores`` of iteration 0 are those of direct transfer, ``scores_statistics`` those of the same model with ``statistics``. The scores of
    later iterations are with ``statistics`` if there are any.
    """

    iteration: int
    model: Artifact
    cameras: Artifact | None = None
    features: Artifact | None = None
    clusters: Clusters | None = None
    reliable: Reliable | None = None
    reliable_before: Reliable | None = None
    trained: TrainedModel | None = None
    statistics: TargetStatistics | None = None
    scores: Artifact | None = None
    scores_statistics: Artifact | None = None
