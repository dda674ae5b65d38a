"""The Frechet distance between normal distributions fitted to two sets of features (Heusel 2017).

    FID = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

The last trace is the sum of the singular values of S1^(1/2) S2^(1/2). Unlike the square root of a
product of matrices it needs no complex numbers, and unlike the eigenvalues of S1^(1/2) S2 S1^(1/2)
it does not take a root of rounding errors: FID(X, X) is 0 to 1e-12 of tr S.

FID of n images is too large by about a/n (for Inception's 2048 features some 2 at n = 10,000), so
two numbers are given: what n images give, to compare with the literature at the same n, and the
one extrapolated to infinitely many. The reference is taken as it is: a fixed list of images.
"""

from collections.abc import Sequence

import numpy as np

from ddpm.distributed import ALONE, Group
from ddpm.estimates import Estimate, jackknife
from ddpm.moments import Matrix, Moments, merged

# With fewer images for each dimension the bias is no longer a/n: at two, FID at infinity came out
# a fifth too small in simulations, at four a twentieth.
IMAGES_PER_DIMENSION = 5


class Frechet:
    """Distances from one reference, whose root is taken once."""

    def __init__(self, reference: Moments) -> None:
        self._mean = reference.mean.numpy()
        covariance = reference.covariance
        self._trace = float(np.trace(covariance))
        self._root = _root(covariance)

    def distance(self, moments: Moments) -> float:
        """The Frechet distance of `moments` from the reference; 0 where rounding makes it less."""
        covariance = moments.covariance
        apart = moments.mean.numpy() - self._mean
        overlap = np.linalg.svd(self._root @ _root(covariance), compute_uv=False).sum()
        distance = apart @ apart + np.trace(covariance) + self._trace - 2 * overlap
        return max(0.0, float(distance))


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
    plain, infinite = (
        jackknife(value, without, whole.count, corrected=corrected) for corrected in (False, True)
    )
    return plain, infinite


def _root(covariance: Matrix) -> Matrix:
    """The symmetric root of a covariance; what rounding made negative counts as 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
