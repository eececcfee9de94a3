"""Feature extraction, one batch at a time: memory use does not grow with the number of images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pul_core.arrays import Features, Images, Ints
from pul_core.errors import NotFiniteError
from pul_core.learning.backbone import normalise
from pul_core.learning.camera_statistics import BackboneOnCamera, CameraStatistics
from pul_core.learning.feeding import read_batches
from pul_core.learning.precision import autocast, fast_products
from pul_core.settings import Dtype

BATCH_SIZES = {"cuda": 256}  # images; a constant for each kind of device, because rounding depends on it
BATCH_SIZE = 32  # on all others
BLOCK = 1024  # images that are grouped by camera before they are divided into batches


def extract_features(
    backbone: nn.Module,
    images: Images,
    *,
    statistics: CameraStatistics | None = None,
    camids: Ints | None = None,
    flip: bool = False,
    batch_size: int | None = None,
    device: str = "cpu",
    dtype: Dtype = "float32",
    on_float32_fallback: Callable[[int], None] | None = None,
) -> Iterator[Features]:
    """Yield the backbone's features of the images, one batch at a time, in the order of the images.

    A batch whose bfloat16 or float16 features are not all finite is computed again in float32.

    With statistics, the images of each camera are normalised with those of the camera. A batch then holds images of one camera, taken from
    a block of up to 1024 images, and the features of a block are yielded together. They are whitened if the statistics whiten.

    Args:
        backbone: (b, 3, h, w) -> (b, d), as returned by ``build_backbone``; it is moved to the device and set to evaluation mode.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        statistics: BatchNorm statistics by camera, and how features are whitened; None: the backbone's statistics, and plain features.
        camids: (n,) camera of each image, -1 is unknown; read with ``statistics`` only.
        flip: whether a feature is the mean of the features of the image and of its mirror image.
        batch_size: images per batch; affects the speed, and the features only by rounding. None: 256 on a GPU, 32 on a CPU.
        device: a torch device.
        dtype: number format of the forward pass, see `inference_dtype`; the features are returned as float32.
        on_float32_fallback: called with the number of images of each batch that was computed again in float32.

    Yields:
        (b, d) float32, not normalised; whitened if the statistics whiten.

    Raises:
        NotFiniteError: a feature is NaN or infinite in float32.
        ValueError: statistics without the camera of each image.

    Source: Fan et al. 2018, section 4 (average pool, 2048-d); Zhuang et al. 2020 (statistics by camera); mirror images
    are common in the field's tests, e.g. in Person_reID_baseline_pytorch.

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> batches = list(extract_features(build_backbone("resnet10t"), np.zeros((5, 64, 32, 3), np.uint8), batch_size=4))
        >>> [features.shape for features in batches]
        [(4, 512), (1, 512)]
    """
    backbone.eval().to(device)
    if statistics is not None:
        if camids is None or len(camids) != len(images):
            raise ValueError("statistics by camera require the camera of each image")
        options = {"flip": flip, "batch_size": batch_size, "device": device, "dtype": dtype, "on_float32_fallback": on_float32_fallback}
        yield from _extract_by_camera(backbone, images, statistics, camids, options)
        return
    slices = batch_slices(len(images), batch_size, device)
    batches = ((pixels, forward(backbone, pixels, dtype, flip=flip)) for pixels in read_batches(images, slices, device=device))
    for start, (pixels, features) in zip((part.start for part in slices), _to_host(batches), strict=True):
        # On CPUs with AMX, bfloat16 convolutions of oneDNN return NaN at random for finite inputs, e.g. in resnet10t, whose stem has 24
        # channels; more often if freed memory holds NaN, and never with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16. The cause may be that of
        # https://github.com/uxlfoundation/oneDNN/issues/5717: an AMX kernel reads past the last valid column and multiplies by zero.
        falls_back = dtype != "float32" and not np.isfinite(features).all()
        if falls_back:
            features = forward(backbone, pixels, "float32", flip=flip).numpy(force=True)
        if not np.isfinite(features).all():
            raise NotFiniteError(
                f"features of images {start} to {start + len(pixels) - 1} are not finite: the weights are damaged, use another model"
            )
        if falls_back and on_float32_fallback:
            on_float32_fallback(len(pixels))
        yield features


def batch_slices(num_images: int, batch_size: int | None, device: str) -> list[slice]:
    """Return the batches of extraction: 256 images on a GPU, 32 on a CPU, unless ``batch_size`` is given.

    Example:
        >>> batch_slices(50, None, "cpu")
        [slice(0, 32, None), slice(32, 64, None)]
    """
    size = batch_size or BATCH_SIZES.get(torch.device(device).type, BATCH_SIZE)
    return [slice(start, start + size) for start in range(0, num_images, size)]


def _extract_by_camera(
    backbone: nn.Module, images: Images, statistics: CameraStatistics, camids: Ints, options: dict[str, Any]
) -> Iterator[Features]:
    """Yield the features of blocks of images, those of each camera normalised with its statistics; options are of `extract_features`."""
    entry = statistics.entries(camids)
    on_camera = {number: BackboneOnCamera(backbone, statistics, number, device=options["device"]) for number in np.unique(entry).tolist()}
    for start in range(0, len(images), BLOCK):
        block, entries = images[start : start + BLOCK], entry[start : start + BLOCK]
        order = np.argsort(entries, kind="stable")
        extracted = np.concatenate(
            [
                features
                for number in np.unique(entries).tolist()
                for features in extract_features(on_camera[number], block[entries == number], **options)
            ]
        )
        features = np.empty_like(extracted)
        features[order] = extracted
        yield features


@torch.inference_mode()
def forward(backbone: nn.Module, pixels: Tensor, dtype: Dtype, *, flip: bool = False) -> Tensor:
    """Return the features (b, d) float32 of pixels (b, 3, h, w) uint8, on their device; the backbone is in evaluation mode.

    With ``flip`` they are the means of the features of the images and of their mirror images.
    """
    with fast_products(), autocast(pixels.device.type, dtype):
        images = normalise(pixels)
        features: Tensor = backbone(images).float()
        return (features + backbone(images.flip(3)).float()) / 2 if flip else features


def _to_host(batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Features]]:
    """Yield (pixels, features) with features as arrays. Those of a GPU are copied while it computes the next batch."""
    copying: list[tuple[Tensor, Tensor, torch.cuda.Event]] = []

    def finish() -> tuple[Tensor, Features]:
        pixels, features, is_copied = copying.pop(0)
        is_copied.synchronize()
        return pixels, features.numpy().copy()  # pinned memory is scarce

    for pixels, features in batches:
        if features.device.type != "cuda":
            yield pixels, features.numpy(force=True)
            continue
        copying.append((pixels, features.to("cpu", non_blocking=True), torch.cuda.current_stream(features.device).record_event()))
        if len(copying) > 1:
            yield finish()
    if copying:
        yield finish()
