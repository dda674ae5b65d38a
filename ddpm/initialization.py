"""The first weights of a network: functions of (seed, parameter name, shape) and of nothing else.

Variance scaling as in Ho et al. 2020 and DDPM v3: weights uniform with variance 2 / (fan_in +
fan_out) (Glorot and Bengio 2010), biases 0, norms 1 and 0, rows of an embedding standard normal.
Layers that end a residual branch, and the head, start at exactly zero (v3: variance 1e-10) and are
marked by their class, ZeroConv2d or ZeroLinear.
"""

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from ddpm import noise

Network = TypeVar("Network", bound=nn.Module)


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero."""

    def reset_parameters(self) -> None:
        _zero(self)


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero."""

    def reset_parameters(self) -> None:
        _zero(self)


@torch.no_grad()
def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters(recurse=False):
        parameter.zero_()


@torch.no_grad()
def init_weights(network: Network, seed: int) -> Network:
    """The network itself, its weights set to their first values for `seed`.

    A parameter's values depend on (seed, its name in the network, its shape), not on what other
    parameters exist or in which order; so call it on the bare network, before a wrapper (compile,
    data parallel) prefixes the names. Raises ValueError for a layer type it has no rule for.
    """
    for prefix, layer in network.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.is_meta:
                parameter.copy_(
                    _first_value(layer, f"{prefix}.{name}".lstrip("."), parameter, seed)
                )
    return network


def _first_value(layer: nn.Module, name: str, parameter: Tensor, seed: int) -> Tensor:
    leaf = name.rpartition(".")[2]
    if isinstance(layer, ZeroConv2d | ZeroLinear):
        return torch.zeros_like(parameter)
    if isinstance(layer, nn.GroupNorm):
        return torch.ones_like(parameter) if leaf == "weight" else torch.zeros_like(parameter)
    if isinstance(layer, nn.Conv2d | nn.Linear):
        return (
            _glorot_uniform(name, parameter, seed)
            if leaf == "weight"
            else torch.zeros_like(parameter)
        )
    if isinstance(layer, nn.Embedding):
        return noise.normal(seed, noise.Stream.INIT, _ids(name, parameter), tuple(parameter.shape))[
            0
        ]
    raise ValueError(
        f"no rule for the first value of {name}, a parameter of {type(layer).__name__}"
    )


def _glorot_uniform(name: str, parameter: Tensor, seed: int) -> Tensor:
    """Uniform in [-limit, limit), limit^2 / 3 = 2 / (fan_in + fan_out)."""
    fans = (
        parameter.shape[0] + parameter.shape[1]
    )  # (out, in) of a matrix, (out, in, height, width) of a kernel
    limit = math.sqrt(6 / (fans * parameter.shape[2:].numel()))
    draw = noise.uniform(seed, noise.Stream.INIT, _ids(name, parameter), tuple(parameter.shape))[0]
    return (2 * draw - 1) * limit


def _ids(name: str, parameter: Tensor) -> Tensor:
    return torch.tensor([noise.name_id(name)], dtype=torch.int64, device=parameter.device)
