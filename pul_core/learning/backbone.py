"""The backbone: a convolutional network that ends in global average pooling and maps an image to a feature. It has no classifier."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pul_core.errors import UserError
from pul_core.learning.constants import constant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCALE = tuple(1 / (255 * std) for std in IMAGENET_STD)
SHIFT = tuple(mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True))


class _WithoutInitialisation(TorchFunctionMode):
    """Skips the functions that fill parameters with random numbers; buffers and constants are set as usual."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def build_backbone(name: str, *, pretrained: bool = False, seed: int = 0, initialise: bool = True) -> nn.Module:
    """Build a backbone that maps normalised images (b, 3, h, w) to features (b, d) by global average pooling.

    Args:
        name: a timm model name, e.g. ``resnet50`` (torchvision's architecture and tensor names) or ``mobilenetv2_100``.
        pretrained: download ImageNet weights from timm's hub; for ``resnet50`` these are torchvision's.
        seed: seed of the random initialisation.
        initialise: False leaves the parameters undefined, which saves most of the time; for a caller that loads all of them.

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
    if not timm.is_model(name) or ("." in name and not timm.is_model_pretrained(name)):  # after the dot, a set of weights is named
        names = [*timm.list_models(), *timm.list_pretrained()]
        close_matches = get_close_matches(name.lower(), names, 5) or ["resnet50", "mobilenetv2_100"]
        raise UserError(f"timm has no backbone {name!r}: choose another, e.g. {', '.join(close_matches)}")
    torch.manual_seed(seed)
    with contextlib.nullcontext() if initialise and not pretrained else _WithoutInitialisation():
        backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="avg")
    # Some MobileNets apply a wide convolution after the pooling, as a part of the head; this method uses the pooled feature map itself.
    if hasattr(backbone, "conv_head") and getattr(backbone, "head_hidden_size", backbone.num_features) != backbone.num_features:
        raise UserError(f"backbone {name} has layers between its pooling and its classifier: choose one that ends in average pooling")
    return backbone.to(memory_format=torch.channels_last)


@functools.cache
def check_backbone(name: str, height: int, width: int) -> None:
    """Check that a backbone maps images of a size to one feature each, without memory for its weights.

    Args:
        name: as for `build_backbone`.
        height: of the images, in pixels.
        width: of the images, in pixels.

    Raises:
        UserError: as for `build_backbone`, or the backbone does not accept the size.

    Example:
        >>> check_backbone("vit_tiny_patch16_224", 224, 224)
        >>> check_backbone("vit_tiny_patch16_224", 256, 128)
        Traceback (most recent call last):
        pul_core.errors.UserError: backbone vit_tiny_patch16_224 does not accept images of 256 x 128 pixels (Input height (256) doesn't \
match model (224).): choose another size, or another backbone
    """
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = build_backbone(name).eval()
            shape = backbone(torch.zeros(2, 3, height, width)).shape
    except UserError:
        raise
    except Exception as error:  # what a backbone raises depends on its author
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"backbone {name} does not accept images of {height} x {width} pixels ({reason}): choose another size, or another backbone"
        ) from error
    if shape != (2, backbone.num_features):
        raise UserError(f"backbone {name} has layers between its pooling and its classifier: choose one that ends in average pooling")


def has_imagenet_weights(name: str) -> bool:
    """Return whether timm's hub has trained weights of a backbone.

    Example:
        >>> has_imagenet_weights("resnet50"), has_imagenet_weights("resnet34.no_such_weights")
        (True, False)
    """
    return timm.is_model_pretrained(name)


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
    scale, shift = (constant(values, images.device).view(1, 3, 1, 1) for values in (SCALE, SHIFT))
    return images.float().mul_(scale).sub_(shift)
