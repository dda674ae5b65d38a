"""One flat buffer for all gradients and the sums that ride with them, reduced over workers in one
collective.

Its layout depends on the parameters alone, never on when the process started, so a resumed run sums
in the same order. `fast` has one row: micro-batches accumulate in it and workers' rows are summed
by one all-reduce. `exact` has one row for each of a fixed number of parts of the global batch;
adding other workers' zeros changes no bit, and the rows are then summed pairwise in a fixed tree:
the result is the same bits for any number of workers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddpm.distributed import Group


class GradientBuffer:
    """Gradients of `parameters` in rows, each row followed by `num_sums` further numbers.

    rows: how many parts of the global batch are kept apart (1 = accumulate as they come).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], num_sums: int, rows: int = 1) -> None:
        self.parameters = list(parameters)
        self.size = sum(p.numel() for p in self.parameters)
        device = self.parameters[0].device
        self.buffer = torch.zeros(rows, self.size + num_sums, device=device)
        self.views = [self._views(row) for row in self.buffer]

    def _views(self, row: Tensor) -> list[Tensor]:
        pieces = row[: self.size].split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]

    def begin(self) -> None:
        """Everything zero: a new optimizer step."""
        self.buffer.zero_()

    def collect_into(self, row: int) -> None:
        """Let the next backward passes add to this row."""
        for parameter, view in zip(self.parameters, self.views[row], strict=True):
            parameter.grad = view

    def add_sums(self, row: int, sums: Tensor) -> None:
        """Add to the numbers that ride behind the gradients of a row."""
        self.buffer[row, self.size :] += sums

    def reduce(self, group: Group) -> tuple[Tensor, Tensor]:
        """(gradient (size,), sums): totals over all parts and workers; parameters' .grad point into
        the first.
        """
        group.sum_(self.buffer)
        total = tree_sum(self.buffer)
        # a row of its own would still hold -0.0 where a sum over workers holds 0.0
        total = total.add_(0.0)
        for parameter, view in zip(self.parameters, self._views(total), strict=True):
            parameter.grad = view
        return total[: self.size], total[self.size :]


def tree_sum(rows: Tensor) -> Tensor:
    """The sum over rows (R, n) -> (n,), pairwise in an order that depends on R alone."""
    while rows.shape[0] > 1:
        half = (rows.shape[0] + 1) // 2
        folded = rows[:half].clone()
        folded[: rows.shape[0] - half] += rows[half:]
        rows = folded
    return rows[0]
