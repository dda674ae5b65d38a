"""Exponential moving averages of the network's parameters, the weights that images are drawn with.

theta_ema <- d_n theta_ema + (1 - d_n) theta,   d_n = min(d, (1 + n) / (10 + n)),   n = 0, 1, 2, ...

The average is kept in float32 whatever the parameters' type: in bfloat16, 1 - d = 1e-3 is below
half a unit in the last place of every weight, and the average would never move. Update it once for
each applied optimizer step. It covers parameters only: no network here has buffers that training
changes. It costs 4 bytes a parameter. Averages of other profiles are in power_ema.py.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ddpm.diffusion.power_ema import Snapshot, fit_profile


def decay_at(decay: float, step: int) -> float:
    """Decay d_n of optimizer step `step` (from 0), warmed up: initial weights fade early."""
    return min(decay, (1 + step) / (10 + step))


def init(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average that starts at the parameters: float32 copies of its own."""
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


def reconstruct_average(
    snapshots: Sequence[Snapshot], sigma_rel: float, step: int | None = None
) -> dict[str, Tensor]:
    """Average of length sigma_rel after `step` steps (None: of the last snapshot), float32.

    The sum is taken in float64, one snapshot in memory at a time.

    Raises ValueError as fit_profile(), and for snapshots of different networks.
    """
    if step is None:
        step = max((snapshot.step for snapshot in snapshots), default=0)
    coefficients = fit_profile(snapshots, sigma_rel, step).coefficients
    total: dict[str, Tensor] = {}
    for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
        tensors = snapshot.load()
        if not total:
            total = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in tensors.items()}
        if total.keys() != tensors.keys():
            names = ", ".join(sorted(total.keys() ^ tensors.keys()))
            raise ValueError(f"snapshots differ in: {names}")
        for name, tensor in tensors.items():
            total[name].add_(tensor.double(), alpha=float(coefficient))
    return {name: tensor.float() for name, tensor in total.items()}
