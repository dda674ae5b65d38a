"""The learning rate as a function of the step, and an optimizer state that survives by name."""

import pytest
import torch
from torch import nn

from ddpm.config.schema import HyperParameters
from ddpm.training.step import learning_rate, load_state_by_name, make_optimizer, state_by_name


def hyper(lr_type: str, warmup: int | None = 10) -> HyperParameters:
    return HyperParameters(LR_TYPE=lr_type, LEARNING_RATE=1.0, WARMUP_STEPS=warmup)


def test_constant_is_constant() -> None:
    assert {learning_rate(hyper("constant"), step, 100) for step in range(100)} == {1.0}


def test_warmup_rises_linearly_to_the_peak_and_then_falls_to_zero() -> None:
    rates = [learning_rate(hyper("warmup_cosine"), step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == 0.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_cosine_decay_starts_at_the_peak_whatever_warmup_says() -> None:
    assert learning_rate(hyper("cosine_decay"), 0, 100) == 1.0
    assert learning_rate(hyper("cosine_decay"), 50, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("lr_type", ["warmup_cosine", "cosine_decay"])
def test_the_learning_rate_never_rises_again_after_the_end(lr_type: str) -> None:
    assert learning_rate(hyper(lr_type), 150, 100) == 0.0


def test_warmup_null_is_no_warmup() -> None:
    assert learning_rate(hyper("warmup_cosine", None), 0, 100) == 1.0


def test_biases_are_not_decayed() -> None:
    layer = nn.Linear(3, 2)
    groups = make_optimizer(layer, 0.1).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.1), (1, 0.0)]


def step(layer: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.1
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_optimizer_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    one = nn.Linear(3, 2)
    optimizer = make_optimizer(one, 0.01)
    for _ in range(3):
        step(one, optimizer)
    two = nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    again = make_optimizer(two, 0.01)
    load_state_by_name(again, two, {k: v.clone() for k, v in state_by_name(optimizer, one).items()})
    for _ in range(2):
        step(one, optimizer)
        step(two, again)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_the_state_is_keyed_by_parameter_name() -> None:
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer(layer, 0.0)
    step(layer, optimizer)
    names = {f"{key}.{p}" for key in ("step", "exp_avg", "exp_avg_sq") for p in ("weight", "bias")}
    assert set(state_by_name(optimizer, layer)) == names
