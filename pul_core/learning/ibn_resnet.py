"""IBN-a ResNets: timm's, with instance normalisation of half of the channels, and with the tensor names of IBN-Net's authors.

fast-reid, torchreid, SpCL and Cluster Contrast use the same names.
"""

import timm
import torch
from torch import Tensor, nn

IBN_RESNETS = {f"{name}_ibn_a": name for name in ("resnet18", "resnet34", "resnet50", "resnet101")}


class IBN(nn.Module):
    """Normalises the first half of the channels for each image by itself, and the rest over the batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN, self.BN = nn.InstanceNorm2d(channels // 2, affine=True), nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map (b, c, h, w) of the same size."""
        by_image, by_batch = torch.split(x, [self.IN.num_features, self.BN.num_features], dim=1)
        return torch.cat((self.IN(by_image), self.BN(by_batch)), dim=1)


def build_ibn_resnet(name: str) -> nn.Module:
    """Build one of `IBN_RESNETS` without a classifier: the first BatchNorm of each block of the first three stages is an `IBN`.

    Source: Pan et al. 2018 (Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net), IBN-a.

    Example:
        >>> build_ibn_resnet("resnet18_ibn_a").layer1[0].bn1
        IBN(
          (IN): InstanceNorm2d(32, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=False)
          (BN): BatchNorm2d(32, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)
        )
    """
    backbone: nn.Module = timm.create_model(IBN_RESNETS[name], num_classes=0)
    for stage in ("layer1", "layer2", "layer3"):
        for block in backbone.get_submodule(stage).children():
            block.add_module("bn1", IBN(block.get_parameter("conv1.weight").shape[0]))
    return backbone
