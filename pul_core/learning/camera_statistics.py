"""Statistics of a target: estimated from its training images, without labels, and used to extract its features. No weight changes.

A backbone normalises every layer with the mean and variance of the images that it was trained on. Each camera has light and colours of its
own, so its images are normalised better with its own statistics. In the features, what all images share, such as light, pose and the
usual clothes, dominates a few directions; whitened by their covariance, these weigh less.
"""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pul_core.arrays import Features, Ints
from pul_core.clustering.whitening import whitening_transform
from pul_core.errors import UserError
from pul_core.identities import NO_CAMERA
from pul_core.learning.backbone import normalise
from pul_core.learning.feeding import PixelSource, read_batches
from pul_core.learning.precision import fast_products
from pul_core.settings import Statistics

BATCH_SIZE = 64  # images of one camera that are normalised together; the statistics are those of its batches, averaged

BatchNorm = nn.modules.batchnorm._BatchNorm  # includes timm's BatchNorm with an activation


class Whitening(NamedTuple):
    """The whitening of features: ``(features - mean) @ transform``."""

    mean: Features  # (d,)
    transform: Features  # (d, d), symmetric


@dataclass(frozen=True)
class CameraStatistics:
    """The mean and the variance of each channel before each BatchNorm layer, one entry per camera and one, the last, for all others.

    With these, the features may be whitened, in the same way for all cameras.
    """

    camids: Ints  # (c,) the cameras, or style groups, with statistics of their own, ascending
    num_images: Ints  # (c + 1,) number of images that each entry is estimated from
    means: dict[str, Features]  # by the layer's name, (c + 1, channels)
    variances: dict[str, Features]  # by the layer's name, (c + 1, channels)
    whitening: Whitening | None = None

    def entries(self, camids: Ints) -> Ints:
        """Return the entry of each image's camera: c, the last one, for a small, new or unknown camera.

        Args:
            camids: (n,) camera of each image; -1 is unknown.

        Example:
            >>> CameraStatistics(np.array([2, 5]), np.array([9, 9, 9]), {}, {}).entries(np.array([5, 2, 3, -1]))
            array([1, 0, 2, 2])
        """
        return np.where(np.isin(camids, self.camids), np.searchsorted(self.camids, camids), len(self.camids))

    def of_cameras(self) -> "CameraStatistics":
        """Return the statistics without the entries of style groups, which only apply to the images that were grouped.

        Example:
            >>> CameraStatistics(np.array([-3, -2, 5]), np.array([9, 8, 7, 24]), {}, {}).of_cameras()
            CameraStatistics(camids=array([5]), num_images=array([ 7, 24]), means={}, variances={}, whitening=None)
        """
        kept = np.flatnonzero(np.append(self.camids > NO_CAMERA, True))
        means, variances = ({name: values[kept] for name, values in layers.items()} for layers in (self.means, self.variances))
        return replace(self, camids=self.camids[kept[:-1]], num_images=self.num_images[kept], means=means, variances=variances)


def estimate_statistics(
    backbone: nn.Module,
    images: PixelSource,
    camids: Ints,
    settings: Statistics,
    *,
    seed: int,
    device: str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> CameraStatistics:
    """Estimate the BatchNorm statistics of each camera and those of all cameras together, and how features are whitened.

    Images of a camera pass through the backbone in batches. Each BatchNorm layer normalises a batch by its own mean and variance, and the
    layer's statistics are the averages of these over the batches, which have about equal sizes. Nothing else is in training mode. The
    images of each camera, and those of all cameras for the last entry, are drawn by `draw_images`. What is returned is the mean of these
    statistics, with the weight ``share``, and of those of the backbone.

    With ``whitening``, the features of the same images are extracted with these statistics. Their covariance within the entries, i.e. of
    the features less the mean of their entry, determines the transform (`pul_core.clustering.whitening.whiten`). They are not
    L2-normalised before, so that the transform can be a last linear layer of the network.

    Args:
        backbone: (b, 3, h, w) -> (b, d); not changed.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        camids: (n,) camera of each image; -1 is unknown.
        settings: how many images of a camera are used, and how many it must have.
        seed: seed of the choice of the images and of their batches; a camera's statistics do not depend on images of other cameras.
        device: a torch device. The forward passes are in float32.
        on_batch: called after each batch with its number of images; in total these are `count_forward_passes`.

    Returns:
        The statistics, on the CPU.

    Raises:
        UserError: there are fewer than two images, or the backbone has no BatchNorm layer with statistics, e.g. a transformer.

    Source: Zhuang et al. 2020 (Camera-based Batch Normalization); Schneider et al. 2020 (covariate shift adaptation, equation 3: the
    mixture with the statistics of the model); Jegou and Chum 2012 (whitening); the entry for other cameras, and the power and the
    shrinkage of the whitening, are ours (docs/log.md).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> images = np.random.default_rng(0).integers(0, 256, (9, 64, 32, 3), np.uint8)
        >>> camids = np.array([1, 1, 1, 1, 7, 7, 7, 7, 3])
        >>> statistics = estimate_statistics(build_backbone("resnet10t"), images, camids, Statistics(min_images=4), seed=0)
        >>> statistics.camids, statistics.num_images, statistics.means["conv1.1"].shape
        (array([1, 7]), array([4, 4, 9]), (3, 24))
    """
    if len(camids) < 2:
        raise UserError(f"BatchNorm statistics require at least 2 images, got {len(camids)}: add images, or set statistics.by_camera=false")
    collector = copy.deepcopy(backbone).eval().to(device)
    layers, model_layers = batch_norm_layers(collector), batch_norm_layers(backbone)
    for layer in layers.values():
        layer.train()
        layer.momentum = None  # the plain average over the batches
    cameras, drawn = draw_images(camids, settings, seed=seed)
    entries = []
    for rows in drawn:
        batches = np.array_split(rows, math.ceil(len(rows) / BATCH_SIZE))
        _collect(collector, layers, read_batches(images, batches, device=device), on_batch)
        entries.append({name: _mix(layer, model_layers[name], settings.share) for name, layer in layers.items()})
    means, variances = ({name: np.stack([entry[name][part] for entry in entries]) for name in layers} for part in (0, 1))
    statistics = CameraStatistics(cameras, np.array([len(rows) for rows in drawn]), means, variances)
    if not settings.whitening:
        return statistics
    return replace(statistics, whitening=_estimate_whitening(collector, statistics, images, drawn, settings, device, on_batch))


def count_forward_passes(camids: Ints, settings: Statistics, *, seed: int) -> int:
    """Return the number of images that pass through the network while `estimate_statistics` runs; one that is used twice counts twice."""
    return sum(map(len, draw_images(camids, settings, seed=seed)[1])) * (2 if settings.whitening else 1)


def draw_images(camids: Ints, settings: Statistics, *, seed: int) -> tuple[Ints, list[Ints]]:
    """Draw the images from which statistics are estimated, in random order.

    Args:
        camids: (n,) camera of each image; -1 is unknown.
        settings: how many images of a camera are used, and how many it must have.
        seed: seed of the choice and the order.

    Returns:
        The cameras with statistics of their own (c,), ascending, and c + 1 arrays of positions in ``camids``: up to ``images_per_camera``
        images of each of them; and as many images of all cameras together, equally many of each as far as there are, where unknown cameras
        count as one.

    Example:
        >>> cameras, drawn = draw_images(np.array([4, 4, 4, 4, 4, 9, -1]), Statistics(images_per_camera=3, min_images=2), seed=0)
        >>> cameras, [len(rows) for rows in drawn], sorted(drawn[1].tolist())[-2:]
        (array([4]), [3, 3], [5, 6])
    """
    cameras, sizes = np.unique(camids, return_counts=True)
    share = math.ceil(settings.images_per_camera / len(cameras))
    own = cameras[(sizes >= settings.min_images) & (cameras != NO_CAMERA)]
    pooled = np.concatenate([_draw(np.flatnonzero(camids == camid), share, seed) for camid in cameras])
    drawn = [_draw(np.flatnonzero(camids == camid), settings.images_per_camera, seed) for camid in own]
    return own, [*drawn, _draw(pooled, len(pooled), seed)]


def batch_norm_layers(backbone: nn.Module) -> dict[str, BatchNorm]:
    """Return the BatchNorm layers of a backbone that have statistics, by name.

    Raises:
        UserError: there is none.
    """
    layers = {name: part for name, part in backbone.named_modules() if isinstance(part, BatchNorm) and part.running_mean is not None}
    if not layers:
        raise UserError(
            f"{type(backbone).__name__} has no BatchNorm layer, so it has no statistics by camera: set statistics.by_camera=false, or "
            "choose a convolutional backbone"
        )
    return layers


class BackboneOnCamera(nn.Module):
    """A backbone with one entry of statistics, and whitening; it shares all weights with the original, which is not changed."""

    def __init__(self, backbone: nn.Module, statistics: CameraStatistics, entry: int, *, device: str = "cpu") -> None:
        super().__init__()
        self.backbone = backbone
        values = {"running_mean": statistics.means, "running_var": statistics.variances}
        self.statistics = {
            f"{layer}.{name}": torch.from_numpy(layers[layer][entry]).to(device) for name, layers in values.items() for layer in layers
        }
        whitening = statistics.whitening
        self.whitening = None if whitening is None else tuple(torch.from_numpy(part).to(device) for part in whitening)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features (b, d) of images (b, 3, h, w) of the camera."""
        features: Tensor = torch.func.functional_call(self.backbone, self.statistics, (pixels,))
        if self.whitening is None:
            return features
        mean, transform = self.whitening
        with torch.autocast(features.device.type, enabled=False):  # it amplifies what a product in bfloat16 would round away
            return (features.float() - mean) @ transform


def _draw(rows: Ints, count: int, seed: int) -> Ints:
    """Draw up to ``count`` of the rows in random order."""
    drawn: Ints = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count].numpy()
    return rows[drawn]


@torch.no_grad()
def _collect(backbone: nn.Module, layers: dict[str, BatchNorm], batches: Iterable[Tensor], on_batch: Callable[[int], None] | None) -> None:
    """Replace the statistics of the layers by those of batches (b, 3, h, w) uint8."""
    for layer in layers.values():
        layer.reset_running_stats()
    with fast_products():
        for pixels in batches:
            backbone(normalise(pixels))
            if on_batch:
                on_batch(len(pixels))


@torch.no_grad()
def _estimate_whitening(
    backbone: nn.Module,
    statistics: CameraStatistics,
    images: PixelSource,
    drawn: list[Ints],
    settings: Statistics,
    device: str,
    on_batch: Callable[[int], None] | None,
) -> Whitening:
    """Estimate the whitening from the features of the images that each entry is estimated from."""
    backbone.eval()
    n, d = sum(map(len, drawn)), int(backbone.num_features)  # type: ignore[arg-type]
    total, scatter = (torch.zeros(*shape, dtype=torch.float64, device=device) for shape in ((d,), (d, d)))
    of_means = torch.zeros((), dtype=torch.float64, device=device)  # sum of the squared length of each image's mean
    for entry, rows in enumerate(drawn):
        on_camera = BackboneOnCamera(backbone, statistics, entry, device=device)
        batches = np.array_split(rows, math.ceil(len(rows) / BATCH_SIZE))
        of_entry = torch.zeros(d, dtype=torch.float64, device=device)
        for pixels in read_batches(images, batches, device=device):
            with fast_products():
                features = on_camera(normalise(pixels)).double()
            of_entry += features.sum(0)
            scatter += features.T @ features
            if on_batch:
                on_batch(len(pixels))
        scatter -= torch.outer(of_entry, of_entry) / len(rows)
        of_means += of_entry.square().sum() / len(rows)
        total += of_entry
    if not float(scatter.trace()) > 1e-10 * float(of_means):  # rounding errors of float32
        raise UserError("the features of all images are identical or not finite: use another model, or set statistics.whitening=0")
    transform = whitening_transform(scatter / n, power=settings.whitening, shrinkage=settings.shrinkage)
    return Whitening(_to_array((total / n).float()), _to_array(transform.float()))


def _mix(layer: BatchNorm, model_layer: BatchNorm, share: float) -> tuple[Features, Features]:
    """Return the mean and the variance of two layers, those of the first with the weight ``share``."""
    pairs = ((layer.running_mean, model_layer.running_mean), (layer.running_var, model_layer.running_var))
    mean, variance = (share * _to_array(camera) + (1 - share) * _to_array(model) for camera, model in pairs)
    return mean, variance


def _to_array(tensor: Tensor | None) -> Features:
    assert tensor is not None
    return tensor.numpy(force=True).copy()
