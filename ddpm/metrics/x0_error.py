"""The error of the x0 estimate, by which trials are ranked: it does not know its grid cell.

A training loss is not comparable across cells, since mse(noise) = SNR mse(image) and
mse(velocity) = (SNR + 1) mse(image) per sample. The error of the x0 estimate at a fixed log-SNR,
on fixed (image, noise) pairs, is. Levels are integers of log SNR; the same pairs serve every level
and every trial. Two numbers sum up the curve, since the weighting of levels can pick the winner:

    mean_log10_mse     mean over levels of log10 MSE     every noise level counts alike, by ratio
    snr_weighted_mse   mean over levels of SNR x MSE     the error of the noise; clean end first

A third is in bits: the part of the variational bound in continuous time between two log SNRs.

"Evaluation error" is the standard error over the (image, noise) pairs for one trained network. It
says nothing of another training seed: an interval that supports a claim about a cell is over seeds.
numpy only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.metrics.intervals import standard_error

# Of the data's variance: levels between which it is resolved so far are averaged over.
RESOLVED_SHARES = (0.01, 0.99)


@dataclass(frozen=True, kw_only=True)
class X0Error:
    """Squared error of the x0 estimate, mean over an image's values, by level and pair.

    levels: (L,) integers of log SNR, ascending.  mse: (L, N) float64.  ids: (N,) sample ids.
    """

    levels: np.ndarray
    mse: np.ndarray
    ids: np.ndarray

    def at(self, levels: Sequence[int]) -> np.ndarray:
        """The rows of `mse` at these levels, (len(levels), N); ValueError where there is none."""
        row = {int(level): index for index, level in enumerate(self.levels)}
        missing = [level for level in levels if level not in row]
        if missing:
            raise ValueError(
                f"log-SNR levels {missing} were not evaluated; there are {sorted(row)}"
            )
        return self.mse[[row[level] for level in levels]]

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean over pairs at each level and its evaluation error, both (L,)."""
        return self.mse.mean(axis=1), standard_error(self.mse)


def common_levels(levels: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The levels every one of these lists holds, ascending: the only ones averaged over."""
    sets = [{int(level) for level in one} for one in levels]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def x0_summary(error: X0Error, levels: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Each of X0_MEASURES over `levels`: a trained network's number and its evaluation error."""
    if not levels:
        raise ValueError("no log-SNR level to average over; the cells share none")
    mean = error.at(levels).mean(axis=1)
    with np.errstate(divide="ignore"):
        log_mean = np.log10(mean).mean()
    snr_mean = (np.exp(np.asarray(levels, dtype=np.float64)) * mean).mean()
    errors = standard_error(x0_influence(error, levels))
    return {
        measure: (float(value), float(spread))
        for measure, value, spread in zip(X0_MEASURES, (log_mean, snr_mean), errors, strict=True)
    }


def continuous_bound(error: X0Error, levels: Sequence[int]) -> tuple[float, float]:
    """The variational bound between the lowest and the highest of `levels`, bits a dimension, and
    its evaluation error.

    1/2 integral of SNR x MSE over log SNR, / ln 2              (Kingma et al. 2021, Eq. 18)

    levels: consecutive integers, two at least (ValueError otherwise).  Where the lowest is nearly
    pure noise and the highest far below a grey value, what is left out of the whole bound is small.
    """
    values = np.asarray(levels, dtype=np.float64)
    snr_mse = np.exp(values)[:, None] * error.at(levels)
    bits = _integration_weights(values) @ snr_mse / (2 * np.log(2))  # (N,)
    return float(bits.mean()), float(standard_error(bits))


def _integration_weights(levels: np.ndarray) -> np.ndarray:
    """Of values at consecutive integers: the trapezoid's, with Gregory's corrections at both ends.

    The corrections, of third order, need six values.
    """
    if len(levels) < 2 or not (np.diff(levels) == 1).all():
        raise ValueError(
            f"levels are {levels.tolist()}; give two consecutive integers of log SNR or more"
        )
    weights = np.ones(len(levels))
    ends = (3 / 8, 7 / 6, 23 / 24) if len(levels) >= 6 else (1 / 2,)
    for place, weight in enumerate(ends):
        weights[place] = weights[-1 - place] = weight
    return weights


def x0_influence(error: X0Error, levels: Sequence[int]) -> np.ndarray:
    """Contribution of each pair to the two numbers, to first order: (2, N).

    Their standard errors are those of the rows' means; the difference of two trials on the same
    pairs has the standard error of the difference of their rows.
    """
    mse = error.at(levels)
    mean = mse.mean(axis=1, keepdims=True)
    snr = np.exp(np.asarray(levels, dtype=np.float64))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(mean > 0, mse / mean, 1.0) / np.log(10)
    return np.stack([relative.mean(axis=0), (snr * mse).mean(axis=0)])
