"""The kernel of KID averaged over all pairs of vectors, by group: each worker takes its own rows.

    k(x, y) = (x.y / D + 1)^3

One set is spread over the workers; their parts pass by, one at a time, while every worker keeps its
own. The other, the reference, is whole on each, which takes every size-th of its rows. What travels
besides is K x K matrices of sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.distributed import Group

DEGREE = 3
_ROWS = 1024

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """vectors (n, D), each in one of K groups (n,)."""

    vectors: Tensor
    groups: Tensor

    @classmethod
    def of(cls, blocks: Sequence[Tensor]) -> "_Rows":
        numbers = [torch.full((len(block),), number) for number, block in enumerate(blocks)]
        return cls(vectors=torch.cat(list(blocks)), groups=torch.cat(numbers))

    def passing(self, workers: Group) -> Iterator["_Rows"]:
        """Those of every worker in turn."""
        pairs = zip(workers.passing(self.vectors), workers.passing(self.groups), strict=True)
        for vectors, groups in pairs:
            yield _Rows(vectors=vectors, groups=groups)

    def member(self, count: int) -> Tensor:
        """(n, K): 1 where a vector is in a group."""
        return torch.nn.functional.one_hot(self.groups, count).to(torch.float64)


@dataclass(frozen=True, kw_only=True)
class KernelReference:
    """The reference: all of it, on every worker, and its own means, which are taken once.

    sizes: (K,) of its groups.  within: (K, K) means of the kernel between members of two groups.
    """

    sizes: NDArray[np.int64]
    within: Matrix
    workers: Group
    _rows: _Rows

    @classmethod
    def of(cls, blocks: Sequence[Tensor], workers: Group) -> "KernelReference":
        """blocks: its groups (m, D), the same on every worker; all call this."""
        count, rows = len(blocks), _Rows.of(blocks)
        part = _Rows.of([block[workers.rank :: workers.size] for block in blocks])
        sums = workers.sum_(_sums(part, rows, count).to(workers.device)).cpu().numpy()
        sizes = np.array([len(block) for block in blocks])
        within = sums / np.outer(sizes, sizes)
        return cls(sizes=sizes, within=within, workers=workers, _rows=rows)

    def means(self, blocks: Sequence[Tensor], sizes: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
        """(K, K) means between groups of the samples, and of the samples and the reference.

        blocks: this worker's part of each group (m, D).  sizes: of all parts together.
        """
        count, x = len(blocks), _Rows.of(blocks)
        within = torch.zeros(count, count, dtype=torch.float64)
        for others in x.passing(self.workers):
            within += _sums(x, others, count)
        sums = torch.stack([within, _sums(x, self._rows, count)])
        sums = self.workers.sum_(sums.to(self.workers.device)).cpu()
        return (
            sums[0].numpy() / np.outer(sizes, sizes),
            sums[1].numpy() / np.outer(sizes, self.sizes),
        )


def sizes_of(blocks: Sequence[Tensor], workers: Group) -> NDArray[np.int64]:
    """How many vectors each group has, those of all workers together, (K,)."""
    own = torch.tensor([len(block) for block in blocks], device=workers.device)
    return workers.sum_(own).cpu().numpy()


def _sums(x: _Rows, y: _Rows, count: int) -> Tensor:
    """(K, K): the kernel summed over the pairs of a group of x and a group of y."""
    total = torch.zeros(count, count, dtype=torch.float64)
    member_x, member_y, vectors = x.member(count), y.member(count), y.vectors.to(torch.float64)
    for start in range(0, len(x.vectors), _ROWS):
        rows = slice(start, start + _ROWS)
        total += member_x[rows].mT @ (
            _kernel(x.vectors[rows].to(torch.float64), vectors) @ member_y
        )
    return total


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.mT).div_(x.shape[1]).add_(1.0).pow_(DEGREE)
