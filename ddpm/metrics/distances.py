"""FID and KID: distances between the features of samples and those of real images.

    FID = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)               (Heusel et al. 2017)
    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),  k(x, y) = (x.y / D + 1)^3
                                                                      (Binkowski et al. 2018)

FID comes from streamed moments, KID from kept features, both of images in K groups, which give the
interval. A reference is prepared once (Frechet, KernelReference) and compared with many sets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor, nn

from ddpm.distributed import ALONE, Group
from ddpm.metrics.features import Moments, merged
from ddpm.metrics.intervals import Interval, product_interval, unbiased

# With fewer images for each dimension the bias is no longer a/n: at two, FID at infinity came out
# a fifth too small in simulations, at four a twentieth.
IMAGES_PER_DIMENSION = 5
BLOCK_LEAST = 4  # vectors of a group, for KID
DEGREE = 3
_ROWS = 64  # of a D x D matrix, of all groups, held at once
_TINY = 1e-6  # of the largest s: below it there is nothing but rounding, and no distance
_KERNEL_ROWS = 1024

Matrix = NDArray[np.float64]


class Frechet:
    """Frechet distances from one reference, whose root is taken once.

    The trace of (S1 S2)^(1/2) is the sum of the singular values of S1^(1/2) S2^(1/2). Unlike the
    square root of a product of matrices it needs no complex numbers, and unlike the eigenvalues of
    S1^(1/2) S2 S1^(1/2) it takes no root of rounding errors: FID(X, X) is 0 to 1e-12 of tr S.
    """

    def __init__(self, reference: Moments) -> None:
        self._mean = reference.mean.numpy()
        covariance = reference.covariance
        self._covariance, self._trace = covariance, float(np.trace(covariance))
        self._root = _root(covariance)

    def distance(self, moments: Moments) -> float:
        """The Frechet distance of `moments` from the reference; 0 where rounding makes it less."""
        covariance = moments.covariance
        apart = moments.mean.numpy() - self._mean
        overlap = np.linalg.svd(self._root @ _root(covariance), compute_uv=False).sum()
        distance = apart @ apart + np.trace(covariance) + self._trace - 2 * overlap
        return max(0.0, float(distance))

    def fid(self, groups: Sequence[Moments], workers: Group = ALONE) -> tuple[Interval, Interval]:
        """FID of the images in `groups`: at their number, and at infinity.

        FID of n images is too large by about a/n (for Inception's 2048 features some 2 at
        n = 10,000): the first compares with the literature at the same n, the second is
        extrapolated to infinitely many. Without the bias both intervals are one: what varies is
        which images were drawn. The reference is taken as it is, a fixed list of images.

        groups: K disjoint parts of the images, each like a random draw of them.  workers: all call
        this with the same moments, and take the distances in turn.
        """
        whole = merged(groups)

        def distance(left_out: int) -> float:
            return self.distance(whole.without(groups[left_out - 1]) if left_out else whole)

        value, *without = workers.numbers(1 + len(groups), distance)
        infinite = unbiased(value, without)
        known = min(max(0.0, infinite / value), 1.0) if value > 0 else 0.0
        low, high = product_interval(
            infinite, self.products(whole, groups, known), has_remainder=True
        )
        bias, n = value - infinite, whole.count
        return (
            Interval(value=value, low=low + bias, high=high + bias, n=n, unbiased=False),
            Interval(value=infinite, low=low, high=high, n=n),
        )

    def products(self, whole: Moments, groups: Sequence[Moments], known: float) -> Matrix:
        """The inner products (K, K) of the vectors whose squared mean is the distance of `whole`.

        To second order in the deviations dm, dS of the samples' mean and covariance S from theirs,

            FID = FID(S) + 2 (m1 - m2) . dm + tr (1 - W W') dS + |dm|^2
                         + 1/2 sum_ij E_ij^2 / (s_i + s_j)
            E   = W' dS W,   W = S2^(1/2) U s^(-1/2),   U s^2 U' = S2^(1/2) S S2^(1/2)

        the square of a vector: groups of samples are draws of it. Where covariances vary as much
        as they are, in heavy tails, higher orders count: the interval is then wider, 97 to 99 %.

        One vector for each of K groups; the products lack one constant.  known: the share of the
        distance that is not bias. So far on the way from the reference to `whole` the quadratic
        form is taken: alike, it is that of the reference, which no outlier of the samples shrinks.
        """
        covariance = whole.covariance
        apart = np.stack([(group.mean - whole.mean).numpy() for group in groups])  # (K, D)
        slopes = self._slopes(covariance, groups, apart)
        slopes += 2 * apart @ (whole.mean.numpy() - self._mean)
        curvature = self._curvature(covariance, known, groups, apart)
        return apart @ apart.T + curvature + (slopes + slopes[:, None]) / 2

    def _slopes(self, covariance: Matrix, groups: Sequence[Moments], apart: Matrix) -> Matrix:
        """(K,): tr (1 - W W') dS."""
        w, _ = self._directions(covariance, 1.0)
        slope = -w @ w.T
        slope[np.diag_indices_from(slope)] += 1.0
        pairs = zip(groups, apart, strict=True)
        return np.array([np.vdot(_deviation(covariance, *pair), slope) for pair in pairs])

    def _curvature(
        self, covariance: Matrix, known: float, groups: Sequence[Moments], apart: Matrix
    ) -> Matrix:
        """(K, K): 1/2 sum_ij E_ij E_ij / (s_i + s_j) for each two."""
        w, scales = self._directions(covariance, known)
        total = np.zeros((len(groups), len(groups)))
        for start in range(0, len(scales), _ROWS):
            rows = slice(start, start + _ROWS)
            pairs = zip(groups, apart, strict=True)
            e = np.stack([w[:, rows].T @ _deviation(covariance, *one) @ w for one in pairs])
            e /= np.sqrt(scales[rows, None] + scales)
            flat = e.reshape(len(groups), -1)  # (K, R r)
            total += flat @ flat.T / 2
        return total

    def _directions(self, covariance: Matrix, known: float) -> tuple[Matrix, Matrix]:
        """W (D, r) and s (r,) of a covariance so far from the reference's; where both vary."""
        between = known * covariance
        between += (1 - known) * self._covariance
        seen = self._root @ between
        np.matmul(seen, self._root, out=between)
        del seen
        # This driver works in place, where that of numpy takes two more matrices.
        squares, u = eigh(between, overwrite_a=True, driver="evr")
        del between
        scales = np.sqrt(np.clip(squares, 0.0, None))
        has = scales > _TINY * scales[-1]
        return self._root @ (u[:, has] / np.sqrt(scales[has])), scales[has]


def _deviation(covariance: Matrix, group: Moments, apart: Matrix) -> Matrix:
    """dS (D, D): covariance of a group around the mean of all, less that of all.

    Made anew each time: 16 at once would be half a gigabyte for Inception's features.
    """
    found = group.scatter.numpy() / group.count
    found += np.outer(apart, apart)
    found -= covariance
    return found


def _root(covariance: Matrix) -> Matrix:
    """The symmetric root of a covariance; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """vectors (n, D), each in one of K groups (n,)."""

    vectors: Tensor
    groups: Tensor

    @classmethod
    def of(cls, blocks: Sequence[Tensor]) -> "_Rows":
        numbers = [torch.full((len(block),), number) for number, block in enumerate(blocks)]
        return cls(vectors=torch.cat(list(blocks)), groups=torch.cat(numbers))

    def kernel_sums(self, y: "_Rows", count: int) -> Tensor:
        """(K, K): the kernel summed over the pairs of a group of these and a group of y."""
        total = torch.zeros(count, count, dtype=torch.float64)
        member_x, member_y = (
            nn.functional.one_hot(g, count).double() for g in (self.groups, y.groups)
        )
        vectors = y.vectors.double()
        for start in range(0, len(self.vectors), _KERNEL_ROWS):
            rows = slice(start, start + _KERNEL_ROWS)
            x = self.vectors[rows].double()
            kernel = (x @ vectors.mT).div_(x.shape[1]).add_(1.0).pow_(DEGREE)
            total += member_x[rows].mT @ (kernel @ member_y)
        return total


class KernelReference:
    """Kernel distances from one reference, whose own means are taken once, by all workers.

    The reference is whole on every worker; samples are spread over the workers, and their parts
    pass by one at a time. Besides these only K x K matrices of sums travel.

    blocks: the groups (m, D) of the reference, the same on every worker; all call this.
    """

    def __init__(self, blocks: Sequence[Tensor], workers: Group = ALONE) -> None:
        self.sizes = np.array([len(block) for block in blocks])  # (K,)
        self._workers, self._rows = workers, _Rows.of(blocks)
        part = _Rows.of([block[workers.rank :: workers.size] for block in blocks])
        sums = part.kernel_sums(self._rows, len(blocks)).to(workers.device)
        self._within = workers.sum_(sums).cpu().numpy() / np.outer(self.sizes, self.sizes)

    def kid(self, blocks: Sequence[Tensor]) -> Interval:
        """KID of samples, each worker's part of their groups (m, D); unbiased at any size.

        Group a of both sets is one draw, whose difference of mean features (in the kernel's space)
        is e_a:

            H(a, b) = k(x_a, x_b) + k(y_a, y_b) - k(x_a, y_b) - k(x_b, y_a)     means over members
                    = e_a . e_b
            KID     = mean_{a != b} H(a, b)                                 a U-statistic of K draws

        which uses all pairs but those inside a group. It may be negative, since it estimates 0
        without bias; usually printed times 1000. Raises ValueError for a group of fewer than four.
        """
        workers = self._workers
        own = torch.tensor([len(block) for block in blocks], device=workers.device)
        sizes = workers.sum_(own).cpu().numpy()
        least = int(min(*sizes, *self.sizes))
        if least < BLOCK_LEAST:
            raise ValueError(f"a group has {least} vectors; KID needs {BLOCK_LEAST}")
        within, cross = self._means(_Rows.of(blocks), sizes)
        between = within + self._within - cross - cross.T
        value = float(between[~np.eye(len(blocks), dtype=bool)].mean())
        low, high = product_interval(value, between)
        return Interval(value=value, low=low, high=high, n=int(sizes.sum()))

    def _means(self, x: _Rows, sizes: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
        """(K, K) means of the kernel between groups of samples, and of samples and reference."""
        workers, count = self._workers, len(sizes)
        within = torch.zeros(count, count, dtype=torch.float64)
        parts = zip(workers.passing(x.vectors), workers.passing(x.groups), strict=True)
        for vectors, groups in parts:
            within += x.kernel_sums(_Rows(vectors=vectors, groups=groups), count)
        sums = torch.stack([within, x.kernel_sums(self._rows, count)])
        sums = workers.sum_(sums.to(workers.device)).cpu()
        return (
            sums[0].numpy() / np.outer(sizes, sizes),
            sums[1].numpy() / np.outer(sizes, self.sizes),
        )
