"""Images to features, block by block, so that a million images need no more memory than a thousand."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from pul_core.errors import NotFiniteError
from pul_core.learning.backbone import normalise


def extract_features(
    backbone: nn.Module,
    images: npt.NDArray[np.uint8],
    *,
    batch_size: int = 32,
    device: str = "cpu",
    bf16: bool = False,
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the backbone's features of the images, a batch at a time, in their order.

    Args:
        backbone: (b, 3, h, w) -> (b, d), as ``build_backbone`` returns it; put into evaluation mode.
        images: (n, h, w, 3) uint8, may be memory-mapped.
        batch_size: images a step; changes speed, and features by rounding only.
        device: a torch device.
        bf16: autocast to bfloat16; features are float32 all the same.

    Yields:
        (b, d) float32, not normalised.

    Raises:
        NotFiniteError: a feature is NaN or infinite.

    Source: Fan et al. 2018, section 4 (average pool, 2048-d).

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> blocks = list(extract_features(build_backbone("resnet10t"), np.zeros((5, 64, 32, 3), np.uint8), batch_size=4))
        >>> [block.shape for block in blocks]
        [(4, 512), (1, 512)]
    """
    backbone.eval().to(device)
    for start in range(0, len(images), batch_size):
        pixels = torch.from_numpy(np.array(images[start : start + batch_size])).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode(), torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            features = backbone(normalise(pixels)).float()
        if not torch.isfinite(features).all():
            raise NotFiniteError(f"features of images {start} to {start + len(pixels) - 1} are not finite: the model's weights are damaged")
        yield features.cpu().numpy()
