"""The parts of a step: learning rate, optimizer state by name, the gradient buffer, the profile."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ddpm.config.schema import HyperParameters
from ddpm.distributed import Group, share
from ddpm.training.step import (
    WARMUP_STEPS,
    AdamW,
    GradientBuffer,
    learning_rate,
    profiler,
    tree_sum,
)


def rate(lr_type: str, step: int, warmup: int | None = 10) -> float:
    """The learning rate of a step of 100, at a peak of 1."""
    hyper = HyperParameters(LR_TYPE=lr_type, LEARNING_RATE=1.0, WARMUP_STEPS=warmup)
    return learning_rate(hyper, step, 100)


def test_warmup_rises_linearly_to_the_peak_and_then_falls_to_zero() -> None:
    rates = [rate("warmup_cosine", step) for step in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5) and rates[100] == 0.0
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rate("warmup_cosine", 0, None) == 1.0
    assert rate("warmup_cosine", 150) == 0.0  # never again after the end


def test_the_other_curves_know_no_warmup() -> None:
    assert {rate("constant", step) for step in range(100)} == {1.0}
    decayed = [rate("cosine_decay", step) for step in (0, 50, 150)]
    assert decayed == pytest.approx([1.0, 0.5, 0.0])


def step(layer: nn.Module, optimizer: AdamW) -> None:
    layer.zero_grad()
    layer(torch.ones(1, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.slow
def test_the_optimizer_is_that_of_pytorch_to_the_bit_and_decays_no_biases() -> None:
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(3, 200), nn.SiLU(), nn.Linear(200, 2))
    other = copy.deepcopy(own)
    ours = AdamW(dict(own.named_parameters()), 0.1)
    groups = [{"params": p, "weight_decay": 0.1 if p.ndim > 1 else 0} for p in other.parameters()]
    theirs = torch.optim.AdamW(groups, fused=True)
    for rate in (0.1, 0.01, 0.03):
        ours.lr = rate
        for group in theirs.param_groups:
            group["lr"] = rate
        for model, optimizer in ((own, ours), (other, theirs)):
            step(model, optimizer)
    for a, b in zip(own.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, p in other.named_parameters():
        for key, value in theirs.state[p].items():
            assert torch.equal(ours.tensors[f"{key}.{name}"], value)


def test_a_restored_optimizer_goes_on_as_if_never_stopped() -> None:
    torch.manual_seed(0)
    one = nn.Linear(3, 2)
    optimizer = AdamW(dict(one.named_parameters()), 0.01)
    assert optimizer.tensors == {}
    optimizer.lr = 0.1
    for _ in range(3):
        step(one, optimizer)
    two = nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    again = AdamW(dict(two.named_parameters()), 0.01)
    again.load(optimizer.tensors)
    again.lr = 0.1
    for _ in range(2):
        step(one, optimizer)
        step(two, again)
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_the_state_is_keyed_by_parameter_name() -> None:
    layer = nn.Linear(3, 2)
    optimizer = AdamW(dict(layer.named_parameters()), 0.0)
    step(layer, optimizer)
    names = {f"{key}.{p}" for key in ("step", "exp_avg", "exp_avg_sq") for p in ("weight", "bias")}
    assert set(optimizer.tensors) == names


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_gradients_of_two_backward_passes_add_up_in_one_row() -> None:
    layer, x = network(), torch.randn(6, 3)
    buffer = GradientBuffer(list(layer.parameters()), num_sums=1)
    buffer.begin()
    for piece in (x[:2], x[2:]):
        buffer.collect_into(0)
        layer(piece).square().sum().backward()
    gradient, _ = buffer.reduce(Group())
    wanted = torch.autograd.grad(layer(x).square().sum(), layer.parameters())
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in wanted]))


def test_parameters_see_the_total_of_all_rows() -> None:
    layer, x = network(), torch.randn(4, 3)
    buffer = GradientBuffer(list(layer.parameters()), num_sums=1, rows=2)
    buffer.begin()
    for row, piece in enumerate((x[:1], x[1:])):
        buffer.collect_into(row)
        layer(piece).sum().backward()
    buffer.reduce(Group())
    wanted = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, wanted)


def test_begin_forgets_the_step_before() -> None:
    layer = network()
    buffer = GradientBuffer(list(layer.parameters()), num_sums=2)
    buffer.collect_into(0)
    layer(torch.ones(1, 3)).sum().backward()
    buffer.add_sums(0, torch.tensor([1.0, 2.0]))
    buffer.begin()
    gradient, sums = buffer.reduce(Group())
    assert gradient.abs().sum() == 0 and sums.tolist() == [0.0, 0.0]


def test_sums_ride_along_and_add_up_over_rows() -> None:
    buffer = GradientBuffer(list(network().parameters()), num_sums=2, rows=3)
    buffer.begin()
    for row in range(3):
        buffer.add_sums(row, torch.tensor([1.0, float(row)]))
    assert buffer.reduce(Group())[1].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16])
def test_tree_sum_is_the_sum(rows: int) -> None:
    values = torch.randn(rows, 5, dtype=torch.float64)
    torch.testing.assert_close(tree_sum(values), values.sum(0))


def test_rows_of_other_workers_are_zeros_that_change_no_bit() -> None:
    rows = torch.randn(4, 1000)
    rows[0, 0] = -0.0
    alone = tree_sum(rows.clone()) + 0.0
    halves = [rows.clone(), rows.clone()]
    halves[0][2:] = 0.0
    halves[1][:2] = 0.0
    together = tree_sum(halves[0] + halves[1]) + 0.0
    assert alone.view(torch.int32).equal(together.view(torch.int32))


@pytest.mark.parametrize(("count", "size"), [(128, 3), (5, 5), (7, 2), (64, 1)])
def test_shares_are_contiguous_cover_all_and_differ_by_one_at_most(count: int, size: int) -> None:
    shares = [share(count, rank, size) for rank in range(size)]
    assert [i for part in shares for i in part] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_workers_than_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="4 workers cannot share 3 samples"):
        share(3, 0, 4)


@pytest.mark.slow
def test_a_trace_of_the_steps_asked_for_is_written(tmp_path: Path) -> None:
    """TRAINING.PROFILE."""
    path = tmp_path / "profile.json"
    with profiler(path, 3) as on_step:
        assert on_step is not None
        for _ in range(WARMUP_STEPS + 5):
            torch.ones(4).cumsum(0)
            on_step()
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::cumsum" for event in events) == 3


def test_profile_zero_costs_nothing(tmp_path: Path) -> None:
    with profiler(tmp_path / "profile.json", 0) as on_step:
        assert on_step is None
    assert not list(tmp_path.iterdir())
