"""AdamW, its learning rate as a function of the step, and its state keyed by parameter name."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ddpm.config import HyperParameters

STATE = ("step", "exp_avg", "exp_avg_sq")


def learning_rate(hyper: HyperParameters, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step` (from 0), with `total_steps` in all.

    constant: LEARNING_RATE.  cosine_decay: half a cosine from LEARNING_RATE to 0 at total_steps.
    warmup_cosine: linear over WARMUP_STEPS, then half a cosine. Clamped at the end: it never rises
    again.
    """
    peak = hyper.LEARNING_RATE
    if hyper.LR_TYPE == "constant":
        return peak
    warmup = (hyper.WARMUP_STEPS or 0) if hyper.LR_TYPE == "warmup_cosine" else 0
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(network: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over all parameters; biases and gains (one dimension) are not decayed."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The same learning rate for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = value


def state_by_name(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """{"exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME": tensor} for every parameter that was
    updated.
    """
    return {
        f"{key}.{name}": value.detach()
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_state_by_name(
    optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what state_by_name gave. An empty mapping is the state before the first step."""
    for name, parameter in network.named_parameters():
        if f"step.{name}" not in tensors:
            continue
        optimizer.state[parameter] = {
            key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in STATE
        }
