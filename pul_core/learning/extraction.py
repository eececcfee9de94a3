"""Feature extraction, one batch at a time: memory use does not grow with the number of images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pul_core.arrays import Features, Images
from pul_core.errors import NotFiniteError
from pul_core.learning.backbone import normalise


def extract_features(
    backbone: nn.Module,
    images: Images,
    *,
    batch_size: int = 32,
    device: str = "cpu",
    bf16: bool = False,
    on_float32_fallback: Callable[[int], None] | None = None,
) -> Iterator[Features]:
    """Yield the backbone's features of the images, one batch at a time, in the order of the images.

    A batch whose bfloat16 features are not all finite is computed again in float32.

    Args:
        backbone: (b, 3, h, w) -> (b, d), as returned by ``build_backbone``; it is moved to the device and set to evaluation mode.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        batch_size: images per batch; affects the speed, and the features only by rounding.
        device: a torch device.
        bf16: autocast to bfloat16; the features are returned as float32.
        on_float32_fallback: called with the number of images of each batch that was computed again in float32.

    Yields:
        (b, d) float32, not normalised.

    Raises:
        NotFiniteError: a feature is NaN or infinite in float32.

    Source: Fan et al. 2018, section 4 (average pool, 2048-d).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> batches = list(extract_features(build_backbone("resnet10t"), np.zeros((5, 64, 32, 3), np.uint8), batch_size=4))
        >>> [features.shape for features in batches]
        [(4, 512), (1, 512)]
    """
    backbone.eval().to(device)
    for start in range(0, len(images), batch_size):
        pixels = torch.from_numpy(np.array(images[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        features = _forward(backbone, pixels, bf16=bf16)
        # On CPUs with AMX, bfloat16 convolutions of oneDNN return NaN at random for finite inputs, e.g. in resnet10t, whose stem has 24
        # channels; more often if freed memory holds NaN, and never with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16. The cause may be that of
        # https://github.com/uxlfoundation/oneDNN/issues/5717: an AMX kernel reads past the last valid column and multiplies by zero.
        falls_back = bf16 and not features.isfinite().all()
        if falls_back:
            features = _forward(backbone, pixels, bf16=False)
        if not features.isfinite().all():
            raise NotFiniteError(
                f"features of images {start} to {start + len(pixels) - 1} are not finite: the weights are damaged, use another model"
            )
        if falls_back and on_float32_fallback:
            on_float32_fallback(len(pixels))
        yield features.cpu().numpy()


@torch.inference_mode()
def _forward(backbone: nn.Module, pixels: Tensor, *, bf16: bool) -> Tensor:
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
        return backbone(normalise(pixels)).float()  # type: ignore[no-any-return]
