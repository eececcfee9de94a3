"""What turns an image into a feature: a convolutional trunk and its average pool. Not the classifier, which only training has."""

from collections.abc import Mapping
from difflib import get_close_matches

import timm
import torch
from torch import Tensor, nn

from pul_core.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What other projects put before a trunk's tensor names; the longest possible chain is stripped.
PREFIXES = ("module.", "model.", "backbone.", "base.", "encoder.", "features.")


def build_backbone(name: str, *, pretrained: bool = False, seed: int = 0) -> nn.Module:
    """Build a trunk with global average pooling that maps normalised images (b, 3, h, w) to features (b, d).

    Args:
        name: a timm model name, e.g. ``resnet50`` (torchvision's architecture and tensor names) or ``mobilenetv2_100``.
        pretrained: fetch ImageNet weights from timm's hub; for ``resnet50`` these are torchvision's.
        seed: of the random initialisation.

    Returns:
        A module in channels_last memory format; its attribute ``num_features`` is d.

    Raises:
        UserError: timm knows no such model, or it puts layers between its pool and its classifier.

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
            close = get_close_matches(name, timm.list_models(), 5) or ["resnet50", "mobilenetv2_100"]
            raise UserError(f"no backbone is called {name!r}; timm has, for example: {', '.join(close)}") from error
        raise
    # MobileNets keep a wide convolution behind the pool as part of the head; the feature of this method is the pooled map itself.
    if hasattr(backbone, "conv_head") and getattr(backbone, "head_hidden_size", backbone.num_features) != backbone.num_features:
        raise UserError(f"{name} puts layers between its pool and its classifier; choose a trunk that ends in its average pool")
    return backbone.to(memory_format=torch.channels_last)


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Map pixels to what an ImageNet trunk expects: ``(x / 255 - mean) / std`` by colour.

    Args:
        images: (b, 3, h, w) uint8, RGB.
        dtype: of the result.

    Returns:
        (b, 3, h, w) in ``dtype``, of the same memory format.

    Example:
        >>> round(float(normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))[0, 0]), 3)
        2.249
    """
    scale = torch.tensor([1 / (255 * s) for s in IMAGENET_STD], device=images.device).view(1, 3, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], device=images.device).view(1, 3, 1, 1)
    return images.float().mul_(scale).sub_(shift).to(dtype)


def load_foreign_state(backbone: nn.Module, state: Mapping[str, Tensor]) -> int:
    """Fill a trunk from somebody else's state dict (torchvision, timm, torchreid), whatever its tensors' prefix; classifiers are left out.

    Args:
        backbone: changed in place.
        state: tensor by name.

    Returns:
        How many tensors were taken.

    Raises:
        UserError: a tensor has another shape than the trunk's or is missing (another architecture), or the file holds two models.

    Example:
        >>> backbone = build_backbone("resnet10t")
        >>> foreign = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
        >>> load_foreign_state(backbone, foreign) == len(foreign)
        True
    """
    own = backbone.state_dict()
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if (name := _own_name(key, own)) in found:
            raise UserError(f"there are two tensors {name}: the file holds more than one model")
        if name is not None:
            found[name] = tensor
    missing = [name for name in own if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"{len(missing)} of the backbone's {len(own)} tensors are missing, e.g. {missing[0]}: another architecture?")
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"tensor {name} is {tuple(tensor.shape)} here and {tuple(own[name].shape)} in the backbone: another architecture?"
            )
    backbone.load_state_dict(found, strict=False)
    return len(found)


def _own_name(key: str, own: Mapping[str, Tensor]) -> str | None:
    while key not in own:
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is None:
            return None
        key = key.removeprefix(prefix)
    return key
