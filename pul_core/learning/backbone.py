"""The backbone: a convolutional network that ends in global average pooling and maps an image to a feature. It has no classifier."""

from difflib import get_close_matches

import timm
import torch
from torch import Tensor, nn

from pul_core.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def build_backbone(name: str, *, pretrained: bool = False, seed: int = 0) -> nn.Module:
    """Build a backbone that maps normalised images (b, 3, h, w) to features (b, d) by global average pooling.

    Args:
        name: a timm model name, e.g. ``resnet50`` (torchvision's architecture and tensor names) or ``mobilenetv2_100``.
        pretrained: download ImageNet weights from timm's hub; for ``resnet50`` these are torchvision's.
        seed: seed of the random initialisation.

    Returns:
        A module in channels_last memory format; its attribute ``num_features`` is d.

    Raises:
        UserError: timm has no model of this name, or the model has layers between its pooling and its classifier.

    Source: Fan et al. 2018, section 4 (ResNet-50, average pool, 2048-d); the library is timm.

    Example:
        >>> backbone = build_backbone("resnet10t")
        >>> backbone(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 512])
    """
    if name == "resnet50" and pretrained:
        name = "resnet50.tv_in1k"
    torch.manual_seed(seed)
    try:
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="avg")
    except RuntimeError as error:
        if not timm.is_model(name):
            close_matches = get_close_matches(name, timm.list_models(), 5) or ["resnet50", "mobilenetv2_100"]
            raise UserError(f"timm has no backbone {name!r}: choose another, e.g. {', '.join(close_matches)}") from error
        raise
    # Some MobileNets apply a wide convolution after the pooling, as a part of the head; this method uses the pooled feature map itself.
    if hasattr(backbone, "conv_head") and getattr(backbone, "head_hidden_size", backbone.num_features) != backbone.num_features:
        raise UserError(f"backbone {name} has layers between its pooling and its classifier: choose one that ends in average pooling")
    return backbone.to(memory_format=torch.channels_last)


def normalise(images: Tensor) -> Tensor:
    """Normalise pixels as ImageNet models expect them: ``(x / 255 - mean) / std`` per channel.

    Args:
        images: (b, 3, h, w) uint8, RGB.

    Returns:
        (b, 3, h, w) float32, in the same memory format.

    Example:
        >>> round(float(normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))[0, 0]), 3)
        2.249
    """
    scale = torch.tensor([1 / (255 * s) for s in IMAGENET_STD], device=images.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], device=images.device).view(1, 3, 1, 1)
    return images.float().mul_(scale).sub_(shift)
