"""Weights of DDPM v3's network, named and laid out by Keras, put into ours layer by layer.

Keras numbers the layers of a class, `conv2d_7`, so of one kind it is the order that identifies
them: from the image to the prediction, as ours are registered. A file has every layer of Keras at
the top, or v3's blocks as layers of their own, `residual_block_3/conv2d_1`.

    kind               arrays in the file                                 ours
    conv, skip (1x1)   kernel (height, width, in, out), bias              weight (out, in, h, w)
    dense, projection  kernel (in, out), bias                             weight (out, in)
    norm               gamma, beta                                        weight, bias
    table              embeddings (classes, width)                        a row more: "no class", 0
    query, key, value  kernel (in, heads, width), bias (heads, width)     weight (heads width, in)
    output             kernel (heads, width, out), bias                   weight (out, heads width)
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm.diffusion.layers import Attention, ZeroLinear
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError

# Classes of v3's layers.py as Keras writes them, by the modules here that do the same.
_BLOCKS = {
    "time_embedding": "time_embedding",
    "block": "residual_block",
    "attention": "attention_block",
    "down": "down_sample",
    "up": "up_sample",
}
_BY_NAME = {
    "query": ("query",),
    "key_value": ("key", "value"),
    "projection": ("projection",),
    "skip": ("skip",),
}
_OF_ATTENTION = ("query", "key", "value", "output")
_NUMBER = re.compile(r"_?\d+(?=/|$)")
_MOST_SHOWN = 3


class _Slot(NamedTuple):
    """Room for one layer of Keras in a module of the network; block: v3's, "" outside of one."""

    module: str
    block: str
    kind: str


def weights_from_keras(network: UNet, named: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
    """The state dict of a network with keras_layers that predicts as the Keras model does.

    named: layer -> its arrays, the layers of a class in order. Raises InputError naming those that
    are missing, unused, of another shape or not finite.
    """
    if not network.keras_layers:
        raise InputError(
            "weights of Keras need its layers; give TRAINING.NETWORK.KERAS_LAYERS true"
        )
    if network.use_cross_attention:
        raise InputError(
            "cross-attention cannot be imported: what the tokens of v3's are is not known, so its "
            "weights have no certain place; only networks without USE_CROSS_ATTENTION can"
        )
    if network.stem.kernel_size == (1, 1):
        raise InputError(
            "KERNEL_SIZE 1 cannot be imported: a block's convolutions and the one beside it have "
            "equal shapes, and nothing tells which is which"
        )
    layers = {name: [torch.as_tensor(each) for each in named[name]] for name in named}
    found, problems = _by_kind(network, layers)
    slots = defaultdict(list)
    for slot in _slots(network):
        own, shared = (slot.block, slot.kind), ("", slot.kind)
        slots[own if own in found else shared].append(slot)
    state: dict[str, list[Tensor]] = defaultdict(list)
    for key in slots | found:
        names, wanted = found.get(key, []), slots.get(key, [])
        if len(names) != len(wanted):
            problems.append(_miscounted(key, names, wanted))
            continue
        for name, slot in zip(names, wanted, strict=True):
            if problem := _misfit(network, slot, name, layers[name]):
                problems.append(problem)
                continue
            for part, tensor in _turned(network, slot, layers[name]).items():
                state[f"{slot.module}.{part}"].append(tensor)
    if problems:
        head = "the file's layers are not those of TRAINING.NETWORK; give the keys of its training:"
        more = len(problems) - _MOST_SHOWN
        rest = [f"and {more} more"] if more > 0 else []
        raise InputError([head, *problems[:_MOST_SHOWN], *rest])
    return {name: torch.cat(parts) for name, parts in state.items()}


def _slots(network: UNet) -> Iterator[_Slot]:
    for module, layer in network.named_modules():
        kinds: tuple[str, ...] = ()
        if isinstance(layer, nn.GroupNorm):
            kinds = ("norm",)
        elif isinstance(layer, nn.Embedding):
            kinds = ("table",)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            usual = "conv" if isinstance(layer, nn.Conv2d) else "dense"
            usual = "output" if isinstance(layer, ZeroLinear) else usual
            kinds = _BY_NAME.get(module.rpartition(".")[2], (usual,))
        block = next((_BLOCKS[part] for part in module.split(".") if part in _BLOCKS), "")
        yield from (_Slot(module, block, kind) for kind in kinds)


def _by_kind(
    network: UNet, layers: Mapping[str, Sequence[Tensor]]
) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """({(block, kind): names of the file's layers in order}, problems)."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    problems = []
    for name, arrays in layers.items():
        kind = _kind(network, name, arrays)
        layer = name.rpartition("/")[0] if kind in _OF_ATTENTION else name
        block = _NUMBER.sub("", layer.partition("/")[0])
        if block not in _BLOCKS.values():
            block = ""
        if kind is None or (not block and "/" in layer):
            problems.append(f"layer {name} {_shapes(arrays)} is none of v3's network")
        else:
            found[block, kind].append(name)
    for (block, _), names in found.items():
        words = sorted({_NUMBER.sub("", name) for name in names})
        if block and len(words) > 1:
            problems.append(f"{' and '.join(words)}: nothing tells which of a block comes first")
    return found, problems


def _kind(network: UNet, name: str, arrays: Sequence[Tensor]) -> str | None:
    shape = arrays[0].shape
    match [array.ndim for array in arrays]:
        case [4, 1]:
            return "skip" if shape[:2] == (1, 1) else "conv"
        case [2, 1]:
            classes = network.class_embedding
            is_projection = (
                classes is not None
                and isinstance(classes.projection, nn.Linear)
                and shape[0] == classes.table.embedding_dim
            )
            return "projection" if is_projection else "dense"
        case [1, 1]:
            return "norm"
        case [2]:
            return "table"
        case [3, 2]:
            last = name.rpartition("/")[2]
            return next((word for word in ("query", "key", "value") if word in last), None)
        case [3, 1]:
            return "output"
    return None


def _miscounted(key: tuple[str, str], names: Sequence[str], slots: Sequence[_Slot]) -> str:
    what = " ".join(part for part in key if part)
    counts = f"the file has {len(names)} of kind {what}, the network {len(slots)}"
    if len(names) > len(slots):
        return f"{counts}: unused {', '.join(names[len(slots) :][:_MOST_SHOWN])}"
    missing = [slot.module for slot in slots[len(names) :]]
    return f"{counts}: missing for {', '.join(missing[:_MOST_SHOWN])}"


def _misfit(network: UNet, slot: _Slot, name: str, arrays: Sequence[Tensor]) -> str | None:
    """Reason why the arrays of a layer are not those of a slot; None where they are."""
    expected = _expected(network, slot)
    if [tuple(array.shape) for array in arrays] != expected:
        wanted = ", ".join(map(str, expected))
        return f"layer {name} has the shape {_shapes(arrays)}, {slot.module} takes ({wanted})"
    if not all(bool(torch.isfinite(array).all()) for array in arrays):
        return f"layer {name} is not finite"
    return None


def _shapes(arrays: Sequence[Tensor]) -> str:
    return f"({', '.join(str(tuple(array.shape)) for array in arrays)})"


def _expected(network: UNet, slot: _Slot) -> list[tuple[int, ...]]:
    """Shapes of the arrays in Keras."""
    weight = network.get_parameter(f"{slot.module}.weight")
    first, *rest = weight.shape
    match slot.kind:
        case "conv" | "skip":
            return [(*weight.shape[2:], weight.shape[1], first), (first,)]
        case "dense" | "projection":
            return [(rest[0], first), (first,)]
        case "norm":
            return [(first,), (first,)]
        case "table":
            return [(first - 1, rest[0])]
    attention = network.get_submodule(slot.module.rpartition(".")[0])
    assert isinstance(attention, Attention)
    heads, inner = attention.num_heads, attention.query.out_features
    if slot.kind == "output":
        return [(heads, inner // heads, first), (first,)]
    return [(rest[0], heads, inner // heads), (heads, inner // heads)]


def _turned(network: UNet, slot: _Slot, arrays: Sequence[Tensor]) -> dict[str, Tensor]:
    """The arrays of a layer as our parameters, of which key and value are parts of one."""
    kernel, *rest = arrays
    match slot.kind:
        case "table":
            return {"weight": torch.cat((kernel, torch.zeros_like(kernel[:1])))}
        case "conv" | "skip":
            kernel = kernel.permute(3, 2, 0, 1)
        case "dense" | "projection":
            kernel = kernel.T
        case "query" | "key" | "value":
            kernel = kernel.flatten(1).T
        case "output":
            kernel = kernel.flatten(0, 1).T
    bias = rest[0].flatten()
    if slot.module == "stem":
        kernel = _pixels_last(kernel.transpose(0, 1), network.in_channels).transpose(0, 1)
    if slot.module == "head":
        kernel, bias = (_pixels_last(each, network.in_channels) for each in (kernel, bias))
    return {"weight": kernel, "bias": bias}


def _pixels_last(x: Tensor, channels: int) -> Tensor:
    """Rows of TensorFlow's space_to_depth, a block's pixels one after the other, in the order of
    pixel_unshuffle, channel after channel.
    """
    return x.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)
