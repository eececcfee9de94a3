"""OSNet, a small network for person re-identification, with the tensor names of torchreid. It has no ImageNet weights here.

The variants are plain (``osnet_x1_0``), with instance normalisation after the first blocks (``osnet_ibn_x1_0``), and with instance
normalisation inside blocks that were found by a search (``osnet_ain_x1_0``).
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from torch import Tensor, nn

Kind = Literal["plain", "ibn", "ain"]
Norm = Literal["none", "after", "inside"]  # the place of the instance normalisation of a block: after the sum, or before it

WIDTHS = {"x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256), "x0_25": (16, 64, 96, 128)}
OSNETS: dict[str, tuple[Kind, str]] = {
    "osnet_x1_0": ("plain", "x1_0"),
    "osnet_x0_75": ("plain", "x0_75"),
    "osnet_x0_5": ("plain", "x0_5"),
    "osnet_x0_25": ("plain", "x0_25"),
    "osnet_ibn_x1_0": ("ibn", "x1_0"),
    "osnet_ain_x1_0": ("ain", "x1_0"),
    "osnet_ain_x0_75": ("ain", "x0_75"),
    "osnet_ain_x0_5": ("ain", "x0_5"),
    "osnet_ain_x0_25": ("ain", "x0_25"),
}
NORMS: dict[Kind, tuple[tuple[Norm, Norm], ...]] = {  # of the two blocks of each of the three stages
    "plain": (("none", "none"),) * 3,
    "ibn": (("after", "after"), ("none", "none"), ("none", "none")),
    "ain": (("inside", "inside"), ("none", "inside"), ("inside", "none")),
}


class OSNet(nn.Module):
    """Maps images (b, 3, h, w) to features (b, 512): the average of the last feature map, a linear layer, BatchNorm and ReLU.

    torchreid compares these features, too, so the linear layer is a part of the backbone.

    Args:
        name: one of `OSNETS`.

    Source: Zhou et al. 2019 (Omni-Scale Feature Learning for Person Re-Identification); Zhou et al. 2021 (osnet_ain). The architecture and
    the names of the tensors are those of torchreid (MIT licence).

    Example:
        >>> OSNet("osnet_x0_25").eval()(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 512])
    """

    num_features = 512

    def __init__(self, name: str) -> None:
        super().__init__()
        kind, width = OSNETS[name]
        channels, norms = WIDTHS[width], NORMS[kind]
        self.conv1 = _conv(3, channels[0], 7, stride=2, norm=nn.BatchNorm2d if kind == "plain" else _instance_norm)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        for number, (before, after, (first, second)) in enumerate(zip(channels, channels[1:], norms, strict=False), 2):
            stage = [OSBlock(before, after, first, is_ain=kind == "ain"), OSBlock(after, after, second, is_ain=kind == "ain")]
            halving = [nn.Sequential(_conv(after, after, 1), nn.AvgPool2d(2, stride=2))] if number < 4 else []
            self.add_module(f"conv{number}", nn.Sequential(*stage, *(halving if kind != "ain" else [])))
            self.add_module(f"pool{number}", nn.Sequential(*(halving[0] if halving and kind == "ain" else [])))
        self.conv5 = _conv(channels[-1], channels[-1], 1)
        self.global_avgpool = SelectAdaptivePool2d(pool_type="avg", flatten=True)
        self.fc = nn.Sequential(nn.Linear(channels[-1], self.num_features), nn.BatchNorm1d(self.num_features), nn.ReLU())
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last feature map (b, c, h / 16, w / 16)."""
        x = self.maxpool(self.conv1(images))
        for number in (2, 3, 4):
            x = self.get_submodule(f"pool{number}")(self.get_submodule(f"conv{number}")(x))
        feature_map: Tensor = self.conv5(x)
        return feature_map

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        features: Tensor = self.fc(self.global_avgpool(self.forward_features(images)))
        return features


class OSBlock(nn.Module):
    """A residual block with four streams of one to four 3 x 3 convolutions, which a gate for each channel adds up."""

    def __init__(self, before: int, after: int, norm: Norm, *, is_ain: bool) -> None:
        super().__init__()
        middle = after // 4
        self.conv1 = _conv(before, middle, 1)
        streams = [nn.Sequential(*(_light_conv(middle) for _ in range(depth))) for depth in (1, 2, 3, 4)]
        if is_ain:
            self.conv2 = nn.ModuleList([nn.Sequential(OrderedDict(layers=stream)) for stream in streams])
        else:
            self.conv2a, self.conv2b, self.conv2c, self.conv2d = streams[0][0], *streams[1:]
        self.gate = ChannelGate(middle)
        self.conv3 = _conv(middle, after, 1, norm=None if norm == "inside" else nn.BatchNorm2d, relu=False)
        self.downsample = _conv(before, after, 1, relu=False) if before != after else None
        self.IN = None if norm == "none" else _instance_norm(after)
        self.norm, self.is_ain = norm, is_ain

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the same size."""
        inputs = self.conv1(x)
        streams = self.conv2 if self.is_ain else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)
        gated = [self.gate(stream(inputs)) for stream in streams]
        residual = self.conv3(gated[0] + gated[1] + gated[2] + gated[3])
        if self.IN is not None and self.norm == "inside":
            residual = self.IN(residual)
        total = residual + (x if self.downsample is None else self.downsample(x))
        if self.IN is not None and self.norm == "after":
            total = self.IN(total)
        return torch.relu(total)


class ChannelGate(nn.Module):
    """Multiplies each channel by a number between 0 and 1 that follows from the averages of all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 16, 1), nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the same size."""
        gates = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gates)


def _conv(
    before: int, after: int, size: int, *, stride: int = 1, norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d, relu: bool = True
) -> nn.Sequential:
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)}
    if norm is not None:
        layers["bn"] = norm(after)
    return nn.Sequential(OrderedDict(layers | ({"relu": nn.ReLU()} if relu else {})))


def _light_conv(channels: int) -> nn.Sequential:
    """A 1 x 1 convolution and a 3 x 3 convolution of each channel by itself."""
    layers = {
        "conv1": nn.Conv2d(channels, channels, 1, bias=False),
        "conv2": nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        "bn": nn.BatchNorm2d(channels),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def _instance_norm(channels: int) -> nn.Module:
    return nn.InstanceNorm2d(channels, affine=True)
