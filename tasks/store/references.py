"""What tasks pass to each other: small frozen references to files. The files hold the data; a reference says which they are."""

from pydantic import BaseModel, ConfigDict

from tasks.store.artifacts import Artifact


class Reference(BaseModel):
    """A value that never changes once it is made."""

    model_config = ConfigDict(frozen=True)


class ImageSet(Reference):
    """An indexed data set. Its root is where the files are today and adds nothing to a cache key; neither do its labels."""

    name: str
    root: str
    layout: str
    images: Artifact
    labels: Artifact | None
    splits: dict[str, int]

    def identity(self) -> str:
        """Return what this set adds to a key: the digest of its images' table."""
        return self.images.sha256

    @property
    def scorable(self) -> bool:
        """Say whether there are labelled queries and a gallery to score on."""
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
    """``labelled`` has (row, class): target images whose identity may be used."""

    labelled: Artifact
    num_identities: int


class Reliable(Reference):
    """``reliable`` has (row, pseudo_label, similarity, labelled, unclustered): what was selected, and what is learnt beside it.

    Few labelled images, and those of no cluster that are classes of their own, stand in it too, with similarity 1.
    """

    reliable: Artifact
    num_classes: int
    num_labelled: int = 0
    num_unclustered: int = 0

    @property
    def size(self) -> int:
        """Return n_t, the number of images that were selected."""
        return self.reliable.rows - self.num_labelled - self.num_unclustered


class TrainedModel(Reference):
    """``model`` is safetensors with its config in the header; ``training`` has one row an epoch."""

    model: Artifact
    training: Artifact


class Compute(Reference):
    """What a step computes on; part of its cache key, because rounding depends on it."""

    device: str
    threads: int
    bf16_inference: bool
    bf16_training: bool


class Iteration(Reference):
    """What an iteration left: the model and its scores, and how it came to them (nothing of that for iteration 0, the original model)."""

    iteration: int
    model: Artifact
    features: Artifact | None = None
    clusters: Clusters | None = None
    reliable: Reliable | None = None
    reliable_before: Reliable | None = None
    trained: TrainedModel | None = None
    scores: Artifact | None = None
