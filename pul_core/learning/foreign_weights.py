"""Weights of other projects: finds the tensors of a backbone in a checkpoint, whatever they are called and whatever is around them."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pul_core.errors import DataError
from pul_core.learning.backbone import build_backbone
from pul_core.learning.ibn_resnet import IBN_RESNETS
from pul_core.learning.osnet import OSNETS

# Parts of tensor names that wrappers insert anywhere: DataParallel, torch.compile, FSDP, activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
AVERAGED = re.compile(r"ema|teacher|mean|averag|swa", re.IGNORECASE)  # in the names of models whose weights are averaged over training
BIAS_TABLE = "relative_position_bias_table"  # of Swin, one entry for each difference of positions in a window
COUNTER = "num_batches_tracked"  # of BatchNorm; missing in files from before PyTorch 0.4.1
DERIVED = re.compile(r"num_batches_tracked$|\.relative_position_index$|\.attn_mask$")  # tables that older files contain
OWN = re.compile(r"(^|\.)bn_neck\.|\.exponent$")  # tensors that this project adds to a network of timm; they keep their values if missing
RESNETS = (
    "resnet50",
    "resnet18",
    "resnet34",
    "resnet101",
    "resnet152",
    "mobilenetv2_100",
    "seresnet50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "densenet121",
    "efficientnet_b0",
)
TRANSFORMERS = (
    "vit_base_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_clip_224",
    "swin_tiny_patch4_window7_224",
    "swin_small_patch4_window7_224",
    "swin_base_patch4_window7_224",
)
# The networks that are recognised, by what occurs in names of their tensors and of no others.
COMMON_BACKBONES = {"attn.qkv.": TRANSFORMERS, "conv2.0.conv2": tuple(OSNETS), ".bn1.IN.": tuple(IBN_RESNETS), "": RESNETS}
# What is not recognised, and what occurs in the names of its tensors.
UNSUPPORTED = {
    "an OSNet or IBN network of another kind": r"\.IN\.(weight|bias)$|(^|\.)conv2\.0\.conv2a\.",
    "a CLIP model with the tensor names of OpenAI, which are not read": r"(^|\.)resblocks\.0\.",
    "a transformer of timm, whose name has to be stated": r"(^|\.)attn\.qkv\.",
    "a transformer with other tensor names than timm's, which are not read": r"(^|\.)(attn|attention|self_attn)\.(in_proj|(self\.)?q)",
    "an optimiser without its model": r"(^|\.)(exp_avg|exp_avg_sq|momentum_buffer)$",
}


class Trunk(NamedTuple):
    """A backbone in a checkpoint: where its tensors are, and what is beside them."""

    place: str  # what the names of its tensors have in common, e.g. "state_dict.module."; empty if nothing
    keys: dict[str, str]  # the name in the checkpoint of each of the backbone's tensors
    has_more_layers: bool = False  # whether there are further tensors between those of the backbone: another architecture
    note: str = ""  # a difference to the backbone that the names show


class Loaded(NamedTuple):
    """What was loaded from a checkpoint."""

    num_tensors: int
    place: str  # as in `Trunk`
    left_out: list[str]  # names of the parts of the checkpoint that were not loaded
    notes: list[str]  # what the user should know


def load_foreign_state(backbone: nn.Module, state: Mapping[str, Tensor]) -> Loaded:
    """Load a backbone from the tensors of a checkpoint, and report what was left out.

    If several models in the checkpoint fit, the first one that is averaged over training (EMA, teacher) is loaded, or else the first one.

    Args:
        backbone: changed in place.
        state: tensors by name; the name of a nested tensor is its path, joined by dots.

    Raises:
        DataError: the tensors are those of another architecture, are not finite, or are quantised.

    Example:
        >>> backbone = build_backbone("resnet10t")
        >>> foreign = {f"module.{name}": tensor for name, tensor in backbone.state_dict().items()}
        >>> load_foreign_state(backbone, foreign | {"module.classifier.weight": torch.ones(5, 512)}).left_out
        ['classifier']
    """
    trunks = find_trunks(backbone, state)
    if not trunks:
        raise DataError(explain_misfit(backbone, state))
    trunk = next((trunk for trunk in trunks if AVERAGED.search(trunk.place)), trunks[0])
    trunk.keys.update(_own_keys(trunk.place, backbone, state))
    weights = {name: _resized(name, state[key], backbone) for name, key in trunk.keys.items()}
    for name, tensor in weights.items():
        if not name.endswith(COUNTER) and not (tensor.is_floating_point() and bool(torch.isfinite(tensor).all())):
            problem = "has values that are not finite" if tensor.is_floating_point() else f"has the type {tensor.dtype}"
            raise DataError(f"tensor {trunk.keys[name]} {problem}: give a checkpoint with finite floating-point weights")
    backbone.load_state_dict(weights, strict=False)
    notes = [trunk.note] * bool(trunk.note)
    if others := [other.place.rstrip(".") or "the outermost one" for other in trunks if other is not trunk]:
        notes.append(
            f"{len(trunks)} models in the file fit, and {trunk.place.rstrip('.') or 'the outermost one'} is used, not {', '.join(others)}"
        )
    return Loaded(len(weights), trunk.place, _parts_beside(trunk, state), notes)


def _own_keys(place: str, backbone: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names in a checkpoint of the tensors that this project adds to a network, as far as they are there."""
    keys = plain_names(state)
    own = {name: tensor.shape for name, tensor in backbone.state_dict().items() if OWN.search(name)}
    return {name: keys[place + name] for name, shape in own.items() if place + name in keys and state[keys[place + name]].shape == shape}


def _required(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a backbone that a checkpoint must have, by name; batch counters among them, which it may lack."""
    return {name: tensor for name, tensor in backbone.state_dict().items() if not OWN.search(name)}


def recognise_backbone(state: Mapping[str, Tensor]) -> str | None:
    """Return the first of `COMMON_BACKBONES` whose tensors are in a checkpoint; None if there is none."""
    names = next(names for part, names in COMMON_BACKBONES.items() if any(part in key for key in state))
    return next((name for name in names if find_trunks(shape_of(name), state)), None)


def shape_of(name: str, **options: Any) -> nn.Module:
    """Build a backbone without memory for its weights: only the names and shapes of its tensors; options as for `build_backbone`."""
    with torch.device("meta"):
        return build_backbone(name, **options)


def find_trunks(backbone: nn.Module, state: Mapping[str, Tensor]) -> list[Trunk]:
    """Find every set of tensors in a checkpoint that is complete for a backbone and has its shapes.

    The tensors have the backbone's names after a common prefix; or numbers instead of the names of the backbone's children, as in
    ``nn.Sequential(conv1, bn1, relu, ...)``; or other names, but the layers have the same kinds and shapes in the same order.

    Args:
        backbone: may be on the meta device.
        state: tensors by name.

    Returns:
        The trunks, in the order of the checkpoint. A trunk with further tensors between those of the backbone is another architecture and
        is not returned.
    """
    expected, keys = _required(backbone), plain_names(state)
    order = {key: position for position, key in enumerate(state)}
    for trunks in (_by_name(expected, keys), _by_number(backbone, expected, keys), _by_order(expected, keys, state)):
        if complete := list(trunks):
            fitting = [trunk for trunk in complete if not trunk.has_more_layers and _has_shapes(trunk, backbone, expected, state)]
            return sorted(fitting, key=lambda trunk: min(order[key] for key in trunk.keys.values()))
    return []


def plain_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the names of a checkpoint's tensors by the same names without what wrappers insert; where two would be equal, as they are.

    Example:
        >>> plain_names({"module.layer1._orig_mod.0.weight": torch.ones(1)})
        {'layer1.0.weight': 'module.layer1._orig_mod.0.weight'}
    """
    stripped = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in state}
    counts = Counter(stripped.values())
    return {plain if counts[plain] == 1 else key: key for key, plain in stripped.items()}


def _by_name(expected: Mapping[str, Tensor], keys: Mapping[str, str]) -> Iterator[Trunk]:
    for prefix in _prefixes(expected, keys):
        found = {name: keys[prefix + name] for name in expected if prefix + name in keys}
        if _is_complete(found, expected):
            yield Trunk(prefix, found, bool(_inside(prefix, {name.split(".")[0] for name in expected}, found, keys)))


def _prefixes(expected: Mapping[str, Tensor], keys: Mapping[str, str]) -> list[str]:
    """Return what precedes names of the backbone, the most frequent first."""
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        counts.update(".".join([*parts[:i], ""]) for i in range(len(parts)) if ".".join(parts[i:]) in expected)
    return [prefix for prefix, _ in counts.most_common()]


def _by_number(backbone: nn.Module, expected: Mapping[str, Tensor], keys: Mapping[str, str]) -> Iterator[Trunk]:
    children = list(dict.fromkeys(name.split(".")[0] for name in expected))
    positions = [name for name, _ in backbone.named_children()]
    numbers: dict[str, set[int]] = {}
    for key in keys:
        parts = key.split(".")
        for i, part in enumerate(parts):
            if part.isdigit():
                numbers.setdefault(".".join([*parts[:i], ""]), set()).add(int(part))
    for prefix, indices in numbers.items():
        if len(indices) < len(children):
            continue
        number = dict(zip(children, sorted(indices), strict=False))
        names = {name: f"{prefix}{number[child]}{rest}" for name in expected for child, rest in [_split_child(name)]}
        found = {name: keys[plain] for name, plain in names.items() if plain in keys}
        if _is_complete(found, expected):
            has_more_layers = bool(_inside(prefix, {str(index) for index in number.values()}, found, keys))
            gaps = [positions.index(child) - index for child, index in number.items()]
            note = "its numbers leave out a layer without weights, e.g. the activation after the first layer, which the backbone has"
            yield Trunk(prefix, found, has_more_layers, note if gaps[-1] > gaps[0] else "")


def _split_child(name: str) -> tuple[str, str]:
    child, dot, rest = name.partition(".")
    return child, dot + rest


def _by_order(expected: Mapping[str, Tensor], keys: Mapping[str, str], state: Mapping[str, Tensor]) -> Iterator[Trunk]:
    ours = _layers({name: tuple(tensor.shape) for name, tensor in expected.items()})
    theirs = _layers({plain: tuple(state[key].shape) for plain, key in keys.items()})
    natural = sorted(theirs, key=lambda layer: [(int(part), "") if part.isdigit() else (-1, part) for part in layer.split(".")])
    pattern = list(ours.values())
    for order in (list(theirs), natural):  # safetensors files do not keep the order of the layers
        shapes = [theirs[layer] for layer in order]
        starts = [start for start in range(len(order) - len(ours) + 1) if shapes[start : start + len(ours)] == pattern]
        for start in starts:
            pairs = list(zip(ours, order[start:], strict=False))
            renamed = {f"{layer}.": f"{other}." for layer, other in pairs}
            names = {name: renamed[name[: name.rindex(".") + 1]] + name[name.rindex(".") + 1 :] for name in expected}
            prefix = _common_prefix([other for _, other in pairs])
            yield Trunk(prefix, {name: keys[plain] for name, plain in names.items() if plain in keys})
        if starts:
            return


def _layers(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of the tensors of each layer by their last names, without counters."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, last = name.rpartition(".")
        if last != COUNTER:
            layers.setdefault(layer, {})[last] = shape
    return layers


def _common_prefix(names: list[str]) -> str:
    """Return the parts that all names begin with, each followed by a dot."""
    parts = [name.split(".") for name in names]
    common = [column[0] for column in zip(*parts, strict=False)]
    length = next((i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1), len(common))
    return "".join(f"{part}." for part in common[:length])


def _is_complete(found: Mapping[str, str], expected: Mapping[str, Tensor]) -> bool:
    return all(name in found or name.endswith(COUNTER) for name in expected)


def _inside(prefix: str, children: set[str], found: Mapping[str, str], keys: Mapping[str, str]) -> list[str]:
    """Return the tensors below a trunk's children that the backbone does not have, i.e. layers of another architecture."""
    used = set(found.values())
    beside = [plain for plain, key in keys.items() if plain.startswith(prefix) and key not in used]
    further = [plain for plain in beside if not DERIVED.search(plain) and not OWN.search(plain)]
    return [plain for plain in further if plain[len(prefix) :].split(".")[0] in children]


def _has_shapes(trunk: Trunk, backbone: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return all(
        state[key].shape == expected[name].shape or _is_resizable(name, state[key], backbone, expected[name])
        for name, key in trunk.keys.items()
    )


def _is_resizable(name: str, tensor: Tensor, backbone: nn.Module, expected: Tensor) -> bool:
    """Return whether a tensor describes the positions in a square image or window, and can be interpolated for another size."""
    if isinstance(backbone, VisionTransformer) and name == "pos_embed":
        return tensor.shape[::2] == expected.shape[::2] and _is_square(tensor.shape[1] - _num_prefix_tokens(backbone))
    is_table = isinstance(backbone, SwinTransformer) and name.endswith(f".{BIAS_TABLE}")
    return is_table and tensor.shape[1:] == expected.shape[1:] and _is_square(tensor.shape[0])


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _resized(name: str, tensor: Tensor, backbone: nn.Module) -> Tensor:
    """Return a tensor of a checkpoint; one that describes positions is interpolated if the backbone has other ones, as timm does."""
    if isinstance(backbone, VisionTransformer) and name == "pos_embed" and tensor.shape != backbone.get_parameter(name).shape:
        grid_size, num_prefix_tokens = list(backbone.patch_embed.grid_size), _num_prefix_tokens(backbone)
        embedding: Tensor = resample_abs_pos_embed(tensor.float(), grid_size, num_prefix_tokens=num_prefix_tokens)
        return embedding
    if isinstance(backbone, SwinTransformer) and name.endswith(f".{BIAS_TABLE}"):
        shape, attention = tuple(backbone.get_parameter(name).shape), backbone.get_submodule(name.removesuffix(f".{BIAS_TABLE}"))
        window_size: Any = attention.window_size
        if tensor.shape != shape:
            table: Tensor = resize_rel_pos_bias_table(tensor.float(), new_window_size=window_size, new_bias_shape=shape)
            return table
    return tensor


def _num_prefix_tokens(backbone: VisionTransformer) -> int:
    return 0 if backbone.no_embed_class else int(backbone.num_prefix_tokens)


def _parts_beside(trunk: Trunk, state: Mapping[str, Tensor]) -> list[str]:
    """Return the names of what is beside a trunk: the first parts of the tensor names that differ from the trunk's place."""
    used, place = set(trunk.keys.values()), trunk.place.split(".")
    parts: dict[str, None] = {}
    for plain, key in plain_names(state).items():
        if key not in used and not plain.endswith(COUNTER):
            names = plain.split(".")
            depth = next((i for i, name in enumerate(names) if i >= len(place) or name != place[i]), len(names) - 1)
            parts[names[depth]] = None
    return list(parts)


def explain_misfit(backbone: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return why a checkpoint does not fit a backbone, and what to do."""
    expected, keys = _required(backbone), plain_names(state)
    prefix = next(iter(_prefixes(expected, keys)), "")
    found = {name: keys[prefix + name] for name in expected if prefix + name in keys}
    missing = [name for name in expected if name not in found and not name.endswith(COUNTER)]
    shapes = [name for name, key in found.items() if state[key].shape != expected[name].shape]
    if missing:
        problem = f"{len(missing)} of the backbone's {len(expected)} tensors are missing, e.g. {missing[0]}"
    elif shapes:
        theirs, ours = tuple(state[found[shapes[0]]].shape), tuple(expected[shapes[0]].shape)
        problem = f"tensor {shapes[0]} has shape {theirs} in the file and {ours} in the backbone"
    else:
        inside = _inside(prefix, {name.split(".")[0] for name in expected}, found, keys)
        problem = f"it has layers that the backbone lacks, e.g. {inside[0].removeprefix(prefix)}"
    return f"{problem}: the weights are of another architecture, {_advice(state)}"


def _advice(state: Mapping[str, Tensor]) -> str:
    if recognised := recognise_backbone(state):
        return f"they look like {recognised}, choose that backbone"
    if network := unsupported_network(state):
        return f"they look like {network}; docs/models.md lists what can be loaded"
    return "choose the backbone they belong to"


def unsupported_network(state: Mapping[str, Tensor]) -> str | None:
    """Return what a checkpoint that cannot be loaded looks like; None if that is unknown."""
    return next((network for network, pattern in UNSUPPORTED.items() if any(re.search(pattern, key) for key in state)), None)
