"""Exponential moving averages of the network's parameters, the weights that images are drawn with.

theta_ema <- d_n theta_ema + (1 - d_n) theta,   d_n = min(d, (1 + n) / (10 + n)),   n = 0, 1, 2, ...

The average is kept in float32 whatever the parameters' type: in bfloat16, 1 - d = 1e-3 is below
half a unit in the last place of every weight, and the average would never move. Update it once for
each applied optimizer step. It covers parameters only: no network here has buffers that training
changes. It costs 4 bytes a parameter; averages of other profiles are in ema_profile.py.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def decay_at(decay: float, step: int) -> float:
    """The decay d_n of optimizer step `step` (from 0), warmed up: initial weights fade early."""
    return min(decay, (1 + step) / (10 + step))


def init(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An average that starts at the parameters: float32 copies of its own."""
    return {
        name: parameter.detach().to(torch.float32, copy=True)
        for name, parameter in parameters.items()
    }


def update(
    average: dict[str, Tensor], parameters: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Moves `average` towards `parameters` by 1 - decay_at(decay, step), in place."""
    move(average, parameters, decay_at(decay, step))


@torch.no_grad()
def move(average: dict[str, Tensor], parameters: Mapping[str, Tensor], decay: float) -> None:
    """Moves `average` towards `parameters` by 1 - decay, in place."""
    if average.keys() != parameters.keys():
        names = ", ".join(sorted(average.keys() ^ parameters.keys()))
        raise ValueError(f"the average and the parameters differ in: {names}")
    targets = [parameters[name].detach().to(torch.float32) for name in average]
    torch._foreach_lerp_(list(average.values()), targets, 1.0 - decay)
