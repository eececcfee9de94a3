"""The parameters of the flows, as typed models: in Prefect's UI they are the form, on disk a run's ``config.json``.

A value left empty is the recipe's (`recipes`); what a run used in the end is written down in full and, given back, repeats it.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A group of parameters; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", title=None)


class Data(Section):
    """How a data set is to be read, where looking at it does not tell."""

    layout: str | None = Field(
        None, description="Empty: look at the folder. E.g. folder-per-identity, viper-1, cuhk03-np-detected; docs/data.md has them all."
    )
    pattern: str | None = Field(
        None,
        description="A regular expression for image paths; its named groups identity, camera, split and timestamp are read (docs/data.md).",
    )


class Model(Section):
    """The network and its input."""

    backbone: str = Field("resnet50", description="A timm model name; resnet50 is torchvision's. On a CPU: mobilenetv2_100.")
    weights: str = Field(
        "imagenet", description="Where source training starts: imagenet (timm's hub), imagenet-packaged, random, or a weights file."
    )
    height: int | None = Field(None, ge=32, le=1024, description="Input height in pixels.")
    width: int | None = Field(None, ge=16, le=1024, description="Input width in pixels.")
    centre_cameras: bool | None = Field(
        None,
        description="Compare features less the mean of their camera, in clustering and in scoring. Without cameras it changes nothing.",
    )


class Training(Section):
    """A training by classification: of the source model, or of every iteration's model."""

    epochs: int | None = Field(None, ge=1, le=1000, description="Passes over the training images.")
    batch_size: int | None = Field(None, ge=2, le=4096, description="Images a step.")
    images_per_class: int | None = Field(
        None, ge=0, le=4096, description="A step shows batch_size / this classes with so many images each. 0: all images shuffled."
    )
    optimiser: Literal["sgd", "adam"] | None = Field(None, description="SGD (authors' code) or Adam.")
    backbone_learning_rate: float | None = Field(None, gt=0, le=10, description="Peak learning rate of the backbone.")
    classifier_learning_rate: float | None = Field(None, gt=0, le=10, description="Peak learning rate of the new classifier.")
    momentum: float | None = Field(None, ge=0, lt=1, description="Momentum of SGD; Adam has its own.")
    nesterov: bool | None = Field(None, description="Nesterov's momentum, for SGD.")
    weight_decay: float | None = Field(None, ge=0, le=1, description="L2 penalty.")
    schedule: Literal["constant", "one_cycle"] | None = Field(None, description="Learning rate over the steps.")
    batch_norm: bool | None = Field(None, description="BatchNorm between features and classifier.")
    dropout: float | None = Field(None, ge=0, lt=1, description="Share of features dropped before the classifier.")
    label_smoothing: float | None = Field(None, ge=0, lt=1, description="Probability spread over all classes.")
    flip_probability: float | None = Field(None, ge=0, le=1, description="Mirror left to right.")
    crop_share: float | None = Field(None, ge=0, le=1, description="Pad by this share of the width, then crop at random.")
    erase_probability: float | None = Field(None, ge=0, le=1, description="Random erasing.")
    rotation_degrees: float | None = Field(None, ge=0, le=180, description="Largest rotation either way.")
    shift_share: float | None = Field(None, ge=0, le=1, description="Largest shift, as a share of height and width.")
    colour_share: float | None = Field(
        None, ge=0, le=1, description="Colour jitter: largest change of exposure, white balance and contrast."
    )

    @field_validator("images_per_class")
    @classmethod
    def _fits_into_a_batch(cls, value: int | None, info: ValidationInfo) -> int | None:
        batch_size = info.data.get("batch_size")
        if value and batch_size and value > batch_size:
            raise PydanticCustomError("images_per_class", f"a batch of {batch_size} images does not hold {value} of one class")
        return value


class FineTuning(Training):
    """The training of every iteration's model on the reliable set."""

    start_from: Literal["original", "last"] | None = Field(
        None, description="Each iteration starts from the original model (paper), or goes on with the last iteration's."
    )
    loss: Literal["softmax", "cluster_memory", "image_memory"] | None = Field(
        None,
        description="A softmax classifier (paper), or one over cosines to a memory: of a mean feature a cluster (Cluster Contrast), or of "
        "every image's feature, averaged over each cluster (SpCL).",
    )
    memory_momentum: float | None = Field(None, ge=0, le=1, description="Memory: what a vector keeps when an image moves it.")
    temperature: float | None = Field(None, gt=0, le=10, description="Memory: what cosines are divided by.")


class Clustering(Section):
    """The features of the target's training images in clusters: a stated number of them (k-means) or as many as there are (DBSCAN)."""

    algorithm: Literal["kmeans", "dbscan"] | None = Field(
        None, description="k-means, or DBSCAN on the Jaccard distance of k-reciprocal neighbours, which needs no K."
    )
    num_clusters: int | None = Field(
        None, ge=1, description="K. Empty: one cluster for every 16 images. Set close to the true number of people it is an oracle K."
    )
    whitening: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Divide each principal direction by this power of its standard deviation, after centring by camera; 0: do not.",
    )
    shrinkage: float | None = Field(
        None, ge=0, le=10, description="Whitening: added to each direction's variance, as a share of the mean one; keeps noise small."
    )
    normalise: bool | None = Field(None, description="L2-normalise the features before k-means.")
    num_restarts: int | None = Field(None, ge=1, le=100, description="k-means runs; the smallest inertia wins.")
    max_passes: int | None = Field(None, ge=1, le=10_000, description="Lloyd passes a k-means run at most.")
    centre_from: Literal["members", "all"] | None = Field(
        None, description="The centre is the feature nearest the centroid among the cluster's members, or among all images."
    )
    num_neighbours: int | None = Field(
        None, ge=1, le=1000, description="DBSCAN: k of the neighbourhoods; where cameras are known, on other cameras, and 0.4 k on the own."
    )
    num_averaged: int | None = Field(None, ge=1, le=1000, description="DBSCAN: nearest images an encoding is averaged over.")
    camera_aware: bool | None = Field(
        None, description="DBSCAN: search for neighbours on the own camera and on the others apart, where cameras are known."
    )
    max_distance: float | None = Field(None, gt=0, lt=1, description="DBSCAN: epsilon, a Jaccard distance; nearer images are linked.")
    min_samples: int | None = Field(None, ge=1, le=1000, description="DBSCAN: images a dense spot has at least.")
    margin: float | None = Field(
        None, ge=0, lt=1, description="DBSCAN: keep what changes least at epsilon less and plus this (SpCL: 0.02). 0: keep all clusters."
    )
    independent_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="DBSCAN with a margin: share of the clusters that are kept, those that are most the same at epsilon plus it.",
    )

    @field_validator("margin")
    @classmethod
    def _stays_a_distance(cls, value: float | None, info: ValidationInfo) -> float | None:
        epsilon = info.data.get("max_distance")
        if value and epsilon and not value < min(epsilon, 1 - epsilon):
            raise PydanticCustomError("margin", f"{epsilon:g} less and plus the margin must be distances between 0 and 1: lower it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_before_whitening(cls, given: Any) -> Any:
        """A config with nothing left open that does not speak of whitening was written when there was none."""
        later = {"whitening", "shrinkage", "camera_aware", "margin", "independent_share"}
        full = set(cls.model_fields) - {"num_clusters"} - later
        if isinstance(given, dict) and "whitening" not in given and all(given.get(name) is not None for name in full):
            return given | {"whitening": 0}
        return given


class Selection(Section):
    """Which images are reliable."""

    min_similarity: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Lambda: an image is reliable if its cosine to a centre, where it was clustered (whitened or not), exceeds it.",
    )
    close_to: Literal["own_centre", "any_centre"] | None = Field(None, description="To the own cluster's centre (paper) or any (code).")
    keep_empty_classes: bool | None = Field(None, description="Keep a class for clusters without a reliable image (authors' code).")
    keep_unclustered: bool | None = Field(None, description="DBSCAN: keep images of no cluster, each as a class of its own (SpCL).")


class FewLabels(Section):
    """Target labels that may be used in training; set one of them or none. Without, no target label is ever looked at."""

    identities: int | None = Field(None, ge=1, description="The first so many identities of the target's training images.")
    share: float | None = Field(None, gt=0, le=1, description="The first identities, as a share of all.")
    file: str | None = Field(None, description="A list: a file name and an identity a line (-1: unlabelled), or an identity a line.")


class Stopping(Section):
    """When the loop ends. Labels have no say."""

    max_iterations: int | None = Field(None, ge=1, le=1000, description="The last iteration at the latest.")
    stop_when_stable: bool | None = Field(None, description="Stop when the reliable set's size is stable.")
    stability_tolerance: float | None = Field(None, ge=0, le=1, description="Relative change of the size that counts as none.")
    stability_patience: int | None = Field(None, ge=1, le=100, description="How often in a row.")


class Machine(Section):
    """What to compute on. Recorded, because the last digits of a result depend on it."""

    device: str | None = Field(None, description="A torch device. Empty: the first GPU if there is one.")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads. Empty: one a core.")
    extraction_batch_size: int = Field(32, ge=1, le=4096, description="Images at once when features are extracted.")


class Plan(Section):
    """Everything a run does, nothing left open."""

    recipe: str
    source: list[str]
    target: str
    original_model: str | None
    source_data: Data = Data()
    target_data: Data = Data()
    model: Model
    pretraining: Training
    clustering: Clustering
    selection: Selection
    fine_tuning: FineTuning
    stopping: Stopping
    few_labels: FewLabels
    machine: Machine
    seed: int
