"""Weight files as Keras writes them, made with h5py from one of our networks."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from ddpm.diffusion import UNet

Arrays = Mapping[str, list[np.ndarray]]


def spoken(network: UNet, seed: int = 0) -> UNet:
    """The network with weights that let every layer speak."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.parameters():
            tensor.add_(0.15 * torch.randn(tensor.shape, generator=random))
        if network.class_embedding is not None:
            network.class_embedding.table.weight[-1] = 0.0
    return network


def keras_layers(network: UNet) -> dict[str, list[np.ndarray]]:
    """Its layers as Keras has them, all at the top, numbered by class from the image on."""
    made: dict[str, list[np.ndarray]] = {}
    seen: Counter[str] = Counter()

    def named(word: str) -> str:
        number = seen[word]
        seen[word] += 1
        return f"{word}_{number}" if number else word

    name_of = {layer: name for name, layer in network.named_modules()}
    for layer in network.modules():
        kind = type(layer).__name__
        own = [p.detach().numpy() for p in layer.parameters(recurse=False)]
        if kind == "Attention":
            name, heads = named("multi_head_attention"), layer.num_heads
            for part, linear, rows in (
                ("query", layer.query, slice(None)),
                ("key", layer.key_value, slice(None, layer.query.out_features)),
                ("value", layer.key_value, slice(layer.query.out_features, None)),
            ):
                weight, bias = (p.detach()[rows] for p in (linear.weight, linear.bias))
                kernel = weight.T.unflatten(1, (heads, -1))
                made[f"{name}/{part}"] = [kernel.numpy(), bias.unflatten(0, (heads, -1)).numpy()]
            kernel = layer.out.weight.detach().T.unflatten(0, (heads, -1))
            made[f"{name}/attention_output"] = [kernel.numpy(), layer.out.bias.detach().numpy()]
        elif kind == "GroupNorm":
            made[named("group_normalization")] = own
        elif kind == "Embedding":
            made[named("embedding")] = [own[0][:-1]]
        elif kind.endswith("Conv2d"):
            made[named("conv2d")] = [own[0].transpose(2, 3, 1, 0), own[1]]
        elif kind == "Linear" and not name_of[layer].endswith(("query", "key_value")):
            made[named("dense")] = [own[0].T, own[1]]
    return made


def write_h5(path: Path, layers: Arrays, *, root: str = "/") -> Path:
    """`.h5`: a group a layer, whose names are attributes. root: model_weights of a whole model."""
    with h5py.File(path, "w") as file:
        group = file.require_group(root)
        tops = list(dict.fromkeys(name.partition("/")[0] for name in layers))
        group.attrs["layer_names"] = [top.encode() for top in ("input_1", *tops)]
        group.require_group("input_1").attrs["weight_names"] = np.array([])
        for top in tops:
            words = []
            for name in (name for name in layers if name.partition("/")[0] == top):
                words += [f"{name}/{word}" for word in _words(layers[name])]
                for word, array in zip(_words(layers[name]), layers[name], strict=True):
                    group[f"{top}/{name}/{word}"] = array
            group[top].attrs["weight_names"] = [word.encode() for word in words]
    return path


def write_weights_h5(path: Path, layers: Arrays) -> Path:
    """`.weights.h5`: variables by number."""
    with h5py.File(path, "w") as file:
        for name, arrays in layers.items():
            for index, array in enumerate(arrays):
                file[f"layers/{name}/vars/{index}"] = array
        file["layers/dropout/seed_generator/vars/0"] = np.array([1, 2], dtype=np.uint32)
    return path


def _words(arrays: list[np.ndarray]) -> tuple[str, ...]:
    if len(arrays) == 1:
        return ("embeddings:0",)
    return ("gamma:0", "beta:0") if arrays[0].ndim == 1 else ("kernel:0", "bias:0")
