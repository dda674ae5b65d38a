"""The flat gradient buffer: rows add up, sums ride along, and workers do not change the bits."""

import pytest
import torch
from torch import nn

from ddpm.distributed import Group, share
from ddpm.training.step import GradientBuffer, tree_sum


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
