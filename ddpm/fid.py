"""The Frechet distance between normal distributions fitted to two sets of features (Heusel 2017).

    FID = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The last trace is the sum of the singular values of S1^(1/2) S2^(1/2). Unlike the square root of a
product of matrices it needs no complex numbers, and unlike the eigenvalues of S1^(1/2) S2 S1^(1/2)
it does not take a root of rounding errors: FID(X, X) is 0 to 1e-12 of tr S.

FID of n images is too large by about a/n (for Inception's 2048 features some 2 at n = 10,000), so
two numbers are given: what n images give, to compare with the literature at the same n, and the
one extrapolated to infinitely many. The reference is taken as it is: a fixed list of images.

To second order in what the samples' mean and covariance S deviate from theirs (dm, dS),

    FID = FID(S) + 2 (m1 - m2) . dm + tr (1 - W W') dS + |dm|^2 + 1/2 sum_ij E_ij^2 / (s_i + s_j)
    E   = W' dS W,   W = S2^(1/2) U s^(-1/2),   U s^2 U' = S2^(1/2) S S2^(1/2)

the square of a vector. So groups of samples are draws of vectors, whose inner products give the
interval of a squared distance (ddpm/squared_distance.py). Where covariances vary as much as they
are, in heavy tails, higher orders count: the interval is made wider then, to 97 to 99 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from ddpm.distributed import ALONE, Group
from ddpm.estimates import Estimate, unbiased
from ddpm.moments import Matrix, Moments, merged
from ddpm.squared_distance import interval

# With fewer images for each dimension the bias is no longer a/n: at two, FID at infinity came out
# a fifth too small in simulations, at four a twentieth.
IMAGES_PER_DIMENSION = 5
_ROWS = 64  # of a D x D matrix, of all groups, held at once
_TINY = 1e-6  # of the largest s: below it there is nothing but rounding, and no distance


class Frechet:
    """Distances from one reference, whose root is taken once."""

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

    def products(self, whole: Moments, groups: Sequence[Moments], known: float) -> Matrix:
        """The inner products (K, K) of the vectors whose squared mean is the distance of `whole`.

        One vector for each of K groups; the products lack one constant.  known: the share of the
        distance that is not bias. So far on the way from the reference to `whole` the quadratic
        form is taken: alike, it is that of the reference, which no outlier of the samples shrinks.
        """
        covariance = whole.covariance
        apart = np.stack([(group.mean - whole.mean).numpy() for group in groups])  # (K, D)
        deviations = [_Deviation(covariance, *each) for each in zip(groups, apart, strict=True)]
        slopes = self._slopes(covariance, deviations)
        slopes += 2 * apart @ (whole.mean.numpy() - self._mean)
        curvature = self._curvature(covariance, known, deviations)
        return apart @ apart.T + curvature + (slopes + slopes[:, None]) / 2

    def _slopes(self, covariance: Matrix, deviations: "Sequence[_Deviation]") -> Matrix:
        """(K,): tr (1 - W W') dS."""
        w, _ = self._directions(covariance, 1.0)
        slope = -w @ w.T
        slope[np.diag_indices_from(slope)] += 1.0
        return np.array([np.vdot(one.matrix(), slope) for one in deviations])

    def _curvature(
        self, covariance: Matrix, known: float, deviations: "Sequence[_Deviation]"
    ) -> Matrix:
        """(K, K): 1/2 sum_ij E_ij E_ij / (s_i + s_j) for each two."""
        w, scales = self._directions(covariance, known)
        total = np.zeros((len(deviations), len(deviations)))
        for start in range(0, len(scales), _ROWS):
            rows = slice(start, start + _ROWS)
            e = np.stack([w[:, rows].T @ one.matrix() @ w for one in deviations])  # (K, R, r)
            e /= np.sqrt(scales[rows, None] + scales)
            flat = e.reshape(len(deviations), -1)
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


@dataclass(frozen=True)
class _Deviation:
    """What a group deviates from all: its covariance around the mean of all, less that of all."""

    covariance: Matrix
    group: Moments
    apart: Matrix

    def matrix(self) -> Matrix:
        """dS (D, D), made anew: 16 at once would be half a gigabyte for Inception's features."""
        found = self.group.scatter.numpy() / self.group.count
        found += np.outer(self.apart, self.apart)
        found -= self.covariance
        return found


def frechet_distance(first: Moments, second: Moments) -> float:
    """The Frechet distance between the normal distributions with these moments."""
    return Frechet(second).distance(first)


def fid(
    groups: Sequence[Moments], reference: Moments, workers: Group = ALONE
) -> tuple[Estimate, Estimate]:
    """FID of the images in `groups` against the reference: at their number, and at infinity.

    groups: K disjoint parts of the images, each like a random draw of them.  workers: all call this
    with the same moments, and take the distances in turn. Without the bias both intervals are one:
    what varies is which images were drawn.
    """
    frechet, whole = Frechet(reference), merged(groups)

    def distance(left_out: int) -> float:
        return frechet.distance(whole.without(groups[left_out - 1]) if left_out else whole)

    value, *without = workers.numbers(1 + len(groups), distance)
    infinite = unbiased(value, without)
    known = min(max(0.0, infinite / value), 1.0) if value > 0 else 0.0
    low, high = interval(infinite, frechet.products(whole, groups, known), has_remainder=True)
    bias, n = value - infinite, whole.count
    return (
        Estimate(value=value, low=low + bias, high=high + bias, n=n, unbiased=False),
        Estimate(value=infinite, low=low, high=high, n=n),
    )


def _root(covariance: Matrix) -> Matrix:
    """The symmetric root of a covariance; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
