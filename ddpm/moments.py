"""Mean and covariance of features, streamed in float64 and merged over batches, groups and workers.

    count, mean = sum x / n, scatter = sum (x - mean)(x - mean)^T            (Chan et al. 1979)

Sums around the mean lose nothing to a mean far from zero, and parts merge in any order: as exact
as all at once to about 1e-13. A D x D matrix is kept and no feature.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.distributed import Group

Matrix = NDArray[np.float64]


@dataclass(kw_only=True)
class Moments:
    """How many vectors there were, their mean (D,) and their scatter (D, D), float64 on the CPU."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def empty(cls, dimension: int) -> "Moments":
        """Of no vector yet."""
        return cls(
            count=0,
            mean=torch.zeros(dimension, dtype=torch.float64),
            scatter=torch.zeros(dimension, dimension, dtype=torch.float64),
        )

    @classmethod
    def of(cls, vectors: Tensor) -> "Moments":
        """Of vectors (n, D)."""
        moments = cls.empty(vectors.shape[1])
        moments.add(vectors)
        return moments

    def add(self, vectors: Tensor) -> None:
        """Takes in vectors (n, D), of any floating type, on any device."""
        if len(vectors) == 0:
            return
        values = vectors.to(torch.float64)
        mean = values.mean(dim=0)
        values = values - mean
        scatter = (values.mT @ values).cpu()
        self._take(len(vectors), mean.cpu(), scatter)

    def merge(self, other: "Moments") -> None:
        """Takes in all that `other` has seen; `other` stays as it is."""
        if other.count:
            self._take(other.count, other.mean, other.scatter)

    def _take(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(apart, apart, alpha=self.count * count / total)
        self.mean += apart * (count / total)
        self.count = total

    def without(self, part: "Moments") -> "Moments":
        """Of what this has seen and `part`, a part of it, has not."""
        count = self.count - part.count
        mean = (self.mean * self.count - part.mean * part.count) / count
        apart = part.mean - mean
        scatter = self.scatter - part.scatter
        scatter.addr_(apart, apart, alpha=-count * part.count / self.count)
        return Moments(count=count, mean=mean, scatter=scatter)

    def reduce_(self, group: Group) -> "Moments":
        """Of what all workers have seen, on every worker; nothing but sums travels."""
        if group.size == 1:
            return self
        sums = torch.cat([torch.tensor([self.count], dtype=torch.float64), self.mean * self.count])
        sums = group.sum_(sums.to(group.device)).cpu()
        mean = sums[1:] / sums[0].clamp(min=1)
        apart = self.mean - mean
        scatter = self.scatter.addr(apart, apart, alpha=self.count)
        self.scatter = group.sum_(scatter.to(group.device)).cpu()
        self.count, self.mean = int(sums[0]), mean
        return self

    @property
    def dimension(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Matrix:
        """(D, D), divided by n - 1. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two vectors at least, there are {self.count}")
        return (self.scatter / (self.count - 1)).numpy()


def merged(parts: Iterable[Moments]) -> Moments:
    """Of what all parts, one at least, have seen."""
    first, *others = parts
    total = Moments(count=first.count, mean=first.mean.clone(), scatter=first.scatter.clone())
    for part in others:
        total.merge(part)
    return total
