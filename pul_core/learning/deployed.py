"""A backbone as it is deployed: with the statistics of one camera, and on request with preprocessing, mirror images and L2 in the graph."""

import copy

import torch
from torch import Tensor, nn

from pul_core.learning.backbone import SCALE, SHIFT
from pul_core.learning.camera_statistics import CameraStatistics


class DeployedModel(nn.Module):
    """Maps images to features in one graph: preprocessing, backbone, mean with the mirror image, and L2 normalisation.

    Everything but the backbone is optional.

    With preprocessing in the graph, the input is (b, h, w, 3) uint8, RGB, as an image decoder returns it. Without, it is (b, 3, h, w)
    float32, normalised as `pul_core.learning.backbone.normalise` does it. The output is (b, d) float32.

    Args:
        backbone: (b, 3, h, w) -> (b, d); it is not copied.
        preprocess: whether the graph normalises the pixels.
        flip: whether a feature is the mean of the features of the image and of its mirror image, as at extraction.
        l2: whether the features have length 1, which they are given last.

    Example:
        >>> from pul_core.learning.backbone import build_backbone
        >>> model = DeployedModel(build_backbone("resnet10t"), preprocess=True, flip=True, l2=True).eval()
        >>> features = model(torch.zeros(2, 64, 32, 3, dtype=torch.uint8))
        >>> features.shape, round(float(features[0].detach().norm()), 4)
        (torch.Size([2, 512]), 1.0)
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, backbone: nn.Module, *, preprocess: bool, flip: bool, l2: bool) -> None:
        super().__init__()
        self.backbone, self.preprocess, self.flip, self.l2 = backbone, preprocess, flip, l2
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images."""
        pixels = images.permute(0, 3, 1, 2).float() * self.scale - self.shift if self.preprocess else images
        if self.flip:  # in one batch, so that the graph holds the network once
            features: Tensor = self.backbone(torch.cat([pixels, pixels.flip(3)]))
            features = features.view(2, -1, features.shape[1]).mean(0)
        else:
            features = self.backbone(pixels)
        # Written out, because nn.functional.normalize expands the norm to the shape of the features, which takes ten nodes in ONNX.
        return features / features.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) if self.l2 else features


def with_statistics(backbone: nn.Module, statistics: CameraStatistics, entry: int) -> nn.Module:
    """Return a copy of a backbone whose BatchNorm layers have one entry of the statistics: an ordinary model for the images of a camera.

    If the statistics whiten the features, the copy has a last linear layer, the attribute ``whitening``, that does so.

    Args:
        backbone: (b, 3, h, w) -> (b, d); not changed.
        statistics: of this backbone.
        entry: position in ``statistics.camids``, or its length for all other cameras.

    Example:
        >>> import numpy as np
        >>> from pul_core.learning.backbone import build_backbone
        >>> from pul_core.learning.camera_statistics import estimate_statistics
        >>> from pul_core.settings import Statistics
        >>> backbone, images = build_backbone("resnet10t"), np.random.default_rng(0).integers(0, 256, (8, 64, 32, 3), np.uint8)
        >>> statistics = estimate_statistics(backbone, images, np.repeat([4, 7], 4), Statistics(min_images=4), seed=0)
        >>> on_camera_7 = with_statistics(backbone, statistics, 1)
        >>> np.array_equal(on_camera_7.state_dict()["conv1.1.running_mean"], statistics.means["conv1.1"][1])
        True
    """
    state = backbone.state_dict()
    for name, values in (("running_mean", statistics.means), ("running_var", statistics.variances)):
        state |= {f"{layer}.{name}": torch.from_numpy(values[layer][entry]) for layer in values}
    copied = copy.deepcopy(backbone)
    copied.load_state_dict(state)
    if statistics.whitening is not None:
        mean, transform = map(torch.from_numpy, statistics.whitening)
        add_whitening(copied).load_state_dict({"weight": transform, "bias": -transform @ mean})
    return copied


def add_whitening(backbone: nn.Module) -> nn.Linear:
    """Add a last linear layer to a backbone, the attribute ``whitening``, and return it; its weights are yet to be loaded."""
    d = int(backbone.num_features)  # type: ignore[arg-type]
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, d, d)  # type: ignore[no-untyped-call]
    backbone.whitening = layer
    backbone.register_forward_hook(_whiten)  # after that of a neck; a hook, so that the tensors of the network keep their names
    return layer


def _whiten(backbone: nn.Module, _: tuple[Tensor, ...], features: Tensor) -> Tensor:
    whitened: Tensor = backbone.get_submodule("whitening")(features)
    return whitened
