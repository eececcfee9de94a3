"""The backbone: a network of timm, an OSNet or an IBN ResNet that maps an image to a feature. It has no classifier."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Protocol

import timm
import torch
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pul_core.errors import UserError
from pul_core.learning.constants import constant
from pul_core.learning.ibn_resnet import IBN_RESNETS, build_ibn_resnet
from pul_core.learning.osnet import OSNETS, OSNet
from pul_core.settings import Pool

SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-nc-4.0": "CC-BY-NC-4.0"}  # by timm's names
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


class Network(Protocol):
    """What describes the architecture of a backbone: settings of a model, or the config in the header of a model file."""

    @property
    def backbone(self) -> str: ...  # noqa: D102 - these are the settings of `pul_core.settings.Model`
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def pool(self) -> Pool: ...  # noqa: D102
    @property
    def last_stride(self) -> int: ...  # noqa: D102
    @property
    def neck(self) -> bool: ...  # noqa: D102


def architecture(network: Network) -> dict[str, Any]:
    """Return the arguments of `build_backbone` that state an architecture.

    Example:
        >>> from pul_core.settings import Model
        >>> architecture(Model(backbone="resnet18", pool="gem"))
        {'name': 'resnet18', 'size': (256, 128), 'pool': 'gem', 'last_stride': 2, 'neck': False}
    """
    size = (network.height, network.width)
    return {"name": network.backbone, "size": size, "pool": network.pool, "last_stride": network.last_stride, "neck": network.neck}


class GeM(nn.Module):
    """Generalised-mean pooling: ``(mean of max(x, eps)^p over the positions)^(1/p)``, with one exponent p that is learned.

    p = 1 is average pooling of what is not negative, and a large p approaches maximum pooling. Maps (b, c, h, w) to (b, c, 1, 1).

    Args:
        exponent: the initial p.
        eps: smallest value that is raised to the power.

    Source: Radenovic et al. 2018 (Fine-tuning CNN image retrieval with no human annotation), section 3.2, with p = 3.

    Example:
        >>> GeM(2)(torch.tensor([1.0, 7]).view(1, 1, 1, 2)).item()
        5.0
    """

    def __init__(self, exponent: float = 3, eps: float = 1e-6) -> None:
        super().__init__()
        self.exponent, self.eps = nn.Parameter(torch.tensor([float(exponent)])), eps

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return the pooled values, computed in float32 even under autocast: float16 overflows at the third power of 41."""
        powers = feature_map.float().clamp(min=self.eps).pow(self.exponent)
        return powers.mean((2, 3), keepdim=True).pow(1 / self.exponent)


def build_backbone(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    pool: Pool = "average",
    last_stride: int = 2,
    neck: bool = False,
    pretrained: bool = False,
    seed: int = 0,
    initialise: bool = True,
) -> nn.Module:
    """Build a backbone that maps normalised images (b, 3, h, w) to features (b, d).

    A network whose last layers form a feature map averages it. A transformer without one keeps the pooling that its weights were trained
    with, e.g. the class token of a ViT or of CLIP.

    Args:
        name: a timm model name, e.g. ``resnet50`` (torchvision's architecture and tensor names) or ``mobilenetv2_100``; an OSNet, e.g.
            ``osnet_x1_0``; or an IBN ResNet, e.g. ``resnet50_ibn_a``.
        size: height and width of the images in pixels, for networks that are built for one size, e.g. because their positions are learned;
            None is the size of the name. Others accept every size.
        pool: ``average``, or ``gem`` for a `GeM` instead of the average.
        last_stride: 1 removes the stride of the last stage that has one; no weight depends on it.
        neck: whether the features pass through a BatchNorm layer, the module's attribute ``bn_neck``. Its bias remains 0, so that the
            features of the training images are centred. In evaluation mode it changes nothing until it is trained, up to rounding.
        pretrained: download ImageNet weights from timm's hub; for ``resnet50`` these are torchvision's.
        seed: seed of the random initialisation.
        initialise: False leaves the parameters undefined, which saves most of the time; for a caller that loads all of them.

    Returns:
        A module in channels_last memory format; its attribute ``num_features`` is d.

    Raises:
        UserError: there is no model of this name, the model has layers between its pooling and its classifier, or it has nothing that
            ``pool`` or ``last_stride`` could change.

    Source: Fan et al. 2018, section 4 (ResNet-50, average pool, 2048-d); Luo et al. 2019 (last stride 1, neck); He et al. 2021
    (TransReID: the class token).

    Example:
        >>> backbone = build_backbone("resnet10t")
        >>> backbone(torch.zeros(2, 3, 64, 32)).shape
        torch.Size([2, 512])
    """
    torch.manual_seed(seed)
    with contextlib.nullcontext() if initialise and not pretrained else _WithoutInitialisation():
        backbone = _create(name, size, pretrained)
    # Some MobileNets apply a wide convolution after the pooling, as a part of the head; this method uses the pooled feature map itself.
    if hasattr(backbone, "conv_head") and getattr(backbone, "head_hidden_size", backbone.num_features) != backbone.num_features:
        raise UserError(f"backbone {name} has layers between its pooling and its classifier: choose one that ends in average pooling")
    if last_stride == 1:
        _remove_last_stride(backbone, name)
    if pool == "gem":
        _replace_pooling(backbone, name)
    if neck:
        backbone.bn_neck = nn.BatchNorm1d(int(backbone.num_features))
        backbone.bn_neck.bias.requires_grad_(False)
        backbone.register_forward_hook(_apply_neck)  # so that the tensors keep timm's names
    in_memory_format: nn.Module = backbone.to(memory_format=torch.channels_last)
    return in_memory_format


def _create(name: str, size: tuple[int, int] | None, pretrained: bool) -> Any:
    if name in OSNETS | IBN_RESNETS:
        if pretrained:
            raise UserError(f"there are no ImageNet weights of {name} to download: give a file")
        return OSNet(name) if name in OSNETS else build_ibn_resnet(name)
    if name == "resnet50" and pretrained:
        name = "resnet50.tv_in1k"
    if not timm.is_model(name) or ("." in name and not timm.is_model_pretrained(name)):  # after the dot, a set of weights is named
        names = [*timm.list_models(), *timm.list_pretrained(), *OSNETS, *IBN_RESNETS]
        close_matches = get_close_matches(name.lower(), names, 5) or ["resnet50", "mobilenetv2_100"]
        raise UserError(f"there is no backbone {name!r}: choose another, e.g. {', '.join(close_matches)}")
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"global_pool": "avg"} if config is None or config.pool_size else {}
    if config and config.fixed_input_size and size not in (None, config.input_size[1:]):
        options["img_size"] = size
    backbone = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    patch = (patch, patch) if isinstance(patch, int) else patch
    if patch and size and (size[0] % patch[0] or size[1] % patch[1]):
        raise UserError(
            f"backbone {name} divides images into patches of {patch[0]} x {patch[1]} pixels, but images of {size[0]} x {size[1]} pixels "
            "were requested: choose multiples as height and width"
        )
    return backbone


def _apply_neck(backbone: nn.Module, _: tuple[Any, ...], features: Tensor) -> Tensor:
    return backbone.get_submodule("bn_neck")(features)  # type: ignore[no-any-return]


def _replace_pooling(backbone: nn.Module, name: str) -> None:
    pools = [part for part in backbone.modules() if isinstance(part, SelectAdaptivePool2d) and isinstance(part.pool, nn.AdaptiveAvgPool2d)]
    if len(pools) != 1:
        raise UserError(
            f"backbone {name} does not end in average pooling of a feature map: set model.pool=average, or choose e.g. resnet50"
        )
    setattr(pools[0], "pool", GeM())  # noqa: B010 - mypy


def _remove_last_stride(backbone: nn.Module, name: str) -> None:
    """Change the stride of the last stage that has one to 1."""
    stages: list[nn.Module] = []
    if isinstance(backbone, ResNet):
        stages = [backbone.get_submodule(f"layer{number}") for number in (1, 2, 3, 4)]
    elif isinstance(backbone, EfficientNet | MobileNetV3):
        stages = list(backbone.get_submodule("blocks").children())
    strided = [_strided_layers(stage) for stage in stages]
    layers = next((layers for layers in reversed(strided) if layers), {})
    if not layers or not all(isinstance(layer, nn.Conv2d | nn.AvgPool2d) for layer in layers.values()):
        raise UserError(
            f"model.last_stride=1 is not defined for backbone {name}: set model.last_stride=2, or choose a ResNet, a MobileNet or an "
            "EfficientNet"
        )
    for (parent, child), layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
        else:  # the average before the projection of the shortcut, as in timm where the stride is 1
            setattr(parent, child, nn.Identity())


def _strided_layers(stage: nn.Module) -> dict[tuple[nn.Module, str], nn.Module]:
    """Return the layers with a stride of 2 by their parents and their names."""
    return {
        (parent, name): layer
        for parent in stage.modules()
        for name, layer in parent.named_children()
        if not list(layer.children()) and getattr(layer, "stride", 1) in (2, (2, 2))
    }


@functools.cache
def check_backbone(name: str, size: tuple[int, int], *, pool: Pool = "average", last_stride: int = 2, neck: bool = False) -> None:
    """Check that a backbone maps images of a size to one feature each, without memory for its weights.

    Args:
        name: as for `build_backbone`.
        size: height and width of the images, in pixels.
        pool: as for `build_backbone`.
        last_stride: as for `build_backbone`.
        neck: as for `build_backbone`.

    Raises:
        UserError: as for `build_backbone`, or the backbone does not accept the size.

    Example:
        >>> check_backbone("vit_tiny_patch16_224", (256, 128))
        >>> check_backbone("vit_tiny_patch16_224", (250, 128))
        Traceback (most recent call last):
        pul_core.errors.UserError: backbone vit_tiny_patch16_224 divides images into patches of 16 x 16 pixels, but images of 250 x 128 \
pixels were requested: choose multiples as height and width
    """
    try:
        with torch.device("meta"), torch.no_grad():
            backbone = build_backbone(name, size=size, pool=pool, last_stride=last_stride, neck=neck).eval()
            shape = backbone(torch.zeros(2, 3, *size)).shape
    except UserError:
        raise
    except Exception as error:  # what a backbone raises depends on its author
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"backbone {name} does not accept images of {size[0]} x {size[1]} pixels ({reason}): choose another size, or another backbone"
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


def imagenet_config(name: str) -> Any:
    """Return what timm states about the ImageNet weights of a backbone, a ``PretrainedCfg``; None if it has none of this name.

    Example:
        >>> imagenet_config("resnet50").hf_hub_id
        'timm/resnet50.tv_in1k'
    """
    return timm.get_pretrained_cfg("resnet50.tv_in1k" if name == "resnet50" else name)


def licence_of_imagenet_weights(name: str) -> str | None:
    """Return the licence of the weights that timm downloads for a backbone, as timm states it; None if it states none.

    Example:
        >>> licence_of_imagenet_weights("resnet50"), licence_of_imagenet_weights("swin_tiny_patch4_window7_224")
        ('BSD-3-Clause', 'MIT')
    """
    config = imagenet_config(name)
    stated = config.license if config else None
    return SPDX.get(stated, stated) if stated else None


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
