"""Style groups: images of similar light, colours and background, which stand for cameras where these are unknown."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pul_core.arrays import Features, Images, Ints
from pul_core.clustering.kmeans import cluster_by_kmeans
from pul_core.errors import NotFiniteError, UserError
from pul_core.identities import FIRST_GROUP, NO_CAMERA
from pul_core.learning.backbone import normalise
from pul_core.learning.extraction import batch_slices
from pul_core.learning.feeding import read_batches
from pul_core.learning.precision import fast_products
from pul_core.settings import KMeans, Statistics

DEPTH = 1 / 3  # of the network: earlier layers see colours only, later ones see people (docs/log.md)


def style_layer(backbone: nn.Module) -> nn.BatchNorm2d:
    """Return the BatchNorm layer of a feature map that is a third of the way through the network.

    Raises:
        UserError: there is none, e.g. in a transformer.
    """
    layers = [part for part in backbone.modules() if isinstance(part, nn.BatchNorm2d)]
    if not layers:
        raise UserError(
            f"{type(backbone).__name__} has no BatchNorm layer of a feature map, so images have no style: set statistics.style_groups=0"
        )
    return layers[max(0, round(len(layers) * DEPTH) - 1)]


@torch.inference_mode()
def extract_style(
    backbone: nn.Module,
    images: Images,
    *,
    batch_size: int | None = None,
    device: str = "cpu",
    on_batch: Callable[[int], None] | None = None,
) -> Features:
    """Return the style of images: the mean and the logarithm of the standard deviation of each channel, over the image.

    The channels are those that enter the BatchNorm layer a third of the way through the network.

    Args:
        backbone: (b, 3, h, w) -> (b, d), with BatchNorm layers; it is moved to the device and set to evaluation mode.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        batch_size: images per batch; affects the result only by rounding. None: as for `extract_features`.
        device: a torch device. The forward passes are in float32.
        on_batch: called after each batch with its number of images.

    Returns:
        (n, 2 * channels) float32.

    Raises:
        UserError: as for `style_layer`.
        NotFiniteError: a value is NaN or infinite.

    Source: the style of Matsuura and Harada 2020 (mixture of latent domains), after Huang and Belongie 2017 (instance statistics); the
    choice of the layer is ours (docs/log.md).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> extract_style(build_backbone("resnet10t"), np.zeros((5, 64, 32, 3), np.uint8), batch_size=4).shape
        (5, 128)
    """
    layer = style_layer(backbone)
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels = inputs[0].float().flatten(2)
        seen.append(torch.cat((channels.mean(2), channels.std(2, correction=0).clamp_min(1e-6).log()), 1).cpu())

    backbone.eval().to(device)
    handle = layer.register_forward_pre_hook(keep)
    try:
        with fast_products():
            for pixels in read_batches(images, batch_slices(len(images), batch_size, device), device=device):
                backbone(normalise(pixels))
                if on_batch:
                    on_batch(len(pixels))
    finally:
        handle.remove()
    style: Features = torch.cat(seen).numpy()
    if not np.isfinite(style).all():
        raise NotFiniteError("activations of the network are not finite: the weights are damaged, use another model")
    return style


def cameras_or_groups(backbone: nn.Module, images: Images, camids: Ints, settings: Statistics, *, seed: int, device: str = "cpu") -> Ints:
    """Return the cameras of a target's training images, or style groups in their place if the cameras are unknown or ignored.

    Args:
        backbone: the original model, see `extract_style`.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        camids: (n,) camera of each image; -1 is unknown.
        settings: whether and into how many groups images are divided.
        seed: see `group_by_style`.
        device: a torch device.

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> images = np.random.default_rng(0).integers(0, 256, (6, 64, 32, 3), np.uint8)
        >>> images[1::2] //= 4  # darker
        >>> settings = Statistics(by_camera=True, style_groups=2, min_images=2)
        >>> cameras_or_groups(build_backbone("resnet10t"), images, np.full(6, -1), settings, seed=0)
        array([-2, -3, -2, -3, -2, -3])
    """
    num_groups = settings.count_style_groups(len(camids), int(np.count_nonzero(camids != NO_CAMERA)))
    if not num_groups:
        return np.full_like(camids, NO_CAMERA) if settings.ignore_cameras else camids
    return group_by_style(extract_style(backbone, images, device=device), num_groups, seed=seed, device=device)


def group_by_style(style: Features, num_groups: int, *, seed: int, device: str = "cpu") -> Ints:
    """Divide images into groups of similar style by k-means on the standardised values.

    Args:
        style: (n, s) of `extract_style`.
        num_groups: number of groups.
        seed: of k-means.
        device: where it runs.

    Returns:
        (n,) `FIRST_GROUP`, `FIRST_GROUP` - 1, ... in place of a camera number; `NO_CAMERA` if all images have the same style.

    Source: Matsuura and Harada 2020, who call the groups latent domains.

    Example:
        >>> group_by_style(np.array([[0, 0], [0.1, 0], [9, 5], [9, 5.1]], np.float32), 2, seed=0).tolist()
        [-2, -2, -3, -3]
    """
    deviation = style.std(0)
    varying = deviation > 1e-6 * np.abs(style).max(initial=1)
    if not varying.any():
        return np.full(len(style), NO_CAMERA, np.int64)
    standardised = (style[:, varying] - style[:, varying].mean(0)) / deviation[varying]
    points = np.pad(standardised, ((0, 0), (0, 1)), constant_values=1)  # k-means rejects zero vectors; a constant changes no distance
    settings = KMeans(num_clusters=num_groups, normalise=False, num_restarts=4)
    clusters = cluster_by_kmeans(points.astype(np.float32), settings, seed=seed, device=device)
    _, first = np.unique(clusters.cluster, return_index=True)
    return FIRST_GROUP - np.argsort(np.argsort(first))[clusters.cluster]  # numbered in the order of the images
