"""The measures by which trials are ranked: numbers that do not know which cell they come from.

A training loss is not comparable across cells, since mse(noise) = SNR mse(image) and
mse(velocity) = (SNR + 1) mse(image) per sample. The error of the x0 estimate at a fixed log-SNR,
on fixed (image, noise) pairs, is. Levels are integers of log SNR; the same pairs serve every level
and every trial. Two numbers sum up the curve, since the weighting of levels can pick the winner:

    mean_log10_mse     mean over levels of log10 MSE     every noise level counts alike, by ratio
    snr_weighted_mse   mean over levels of SNR x MSE     the error of the noise; clean end first

A third number is in bits: the part of the variational bound in continuous time that lies between
two log SNRs, which no more depends on the cell than the curve does.

"Evaluation error" is the standard error over the (image, noise) pairs for one trained network. It
says nothing of another training seed: an interval that supports a claim about a cell is over seeds.
numpy only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import atan, cos, pi, sin, sqrt

import numpy as np

MEASURES = ("mean_log10_mse", "snr_weighted_mse")


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
        return self.mse.mean(axis=1), _standard_error(self.mse)


@dataclass(frozen=True, kw_only=True)
class X0Summary:
    """The two numbers of one trained network over `levels`, each with its evaluation error."""

    levels: tuple[int, ...]
    num_pairs: int
    mean_log10_mse: float
    mean_log10_mse_evaluation_error: float
    snr_weighted_mse: float
    snr_weighted_mse_evaluation_error: float

    def value(self, measure: str) -> float:
        """One of the two numbers by its name in MEASURES."""
        return self.mean_log10_mse if measure == MEASURES[0] else self.snr_weighted_mse

    def evaluation_error(self, measure: str) -> float:
        """Its standard error over pairs."""
        first = measure == MEASURES[0]
        return (
            self.mean_log10_mse_evaluation_error
            if first
            else self.snr_weighted_mse_evaluation_error
        )


def common_levels(levels: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The levels every one of these lists holds, ascending: the only ones averaged over."""
    sets = [{int(level) for level in one} for one in levels]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def summary(error: X0Error, levels: Sequence[int]) -> X0Summary:
    """Both numbers of `error` over `levels`, with their evaluation errors."""
    if not levels:
        raise ValueError("no log-SNR level to average over; the cells share none")
    mean = error.at(levels).mean(axis=1)
    spread = _standard_error(influence(error, levels))
    with np.errstate(divide="ignore"):
        log_mean = float(np.log10(mean).mean())
    return X0Summary(
        levels=tuple(levels),
        num_pairs=error.mse.shape[1],
        mean_log10_mse=log_mean,
        mean_log10_mse_evaluation_error=float(spread[0]),
        snr_weighted_mse=float((np.exp(np.asarray(levels, dtype=np.float64)) * mean).mean()),
        snr_weighted_mse_evaluation_error=float(spread[1]),
    )


@dataclass(frozen=True, kw_only=True)
class ContinuousBound:
    """Bits a dimension that the bound in continuous time spends between two log SNRs.

    Of one trained network, with its evaluation error.
    """

    low: int
    high: int
    num_pairs: int
    value: float
    evaluation_error: float


def continuous_bound(error: X0Error, levels: Sequence[int]) -> ContinuousBound:
    """The variational bound between the lowest and the highest of `levels`, bits a dimension.

    1/2 integral of SNR x MSE over log SNR, / ln 2              (Kingma et al. 2021, Eq. 18)

    levels: consecutive integers, two at least (ValueError otherwise).  Where the lowest is nearly
    pure noise and the highest far below a grey value, what is left out of the whole bound is small.
    """
    values = np.asarray(levels, dtype=np.float64)
    snr_mse = np.exp(values)[:, None] * error.at(levels)
    bits = _integration_weights(values) @ snr_mse / (2 * np.log(2))  # (N,)
    return ContinuousBound(
        low=int(levels[0]),
        high=int(levels[-1]),
        num_pairs=error.mse.shape[1],
        value=float(bits.mean()),
        evaluation_error=float(_standard_error(bits)),
    )


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


def influence(error: X0Error, levels: Sequence[int]) -> np.ndarray:
    """What each pair contributes to the two numbers, to first order: (2, N).

    Their standard errors are those of the rows' means; the difference of two trials on the same
    pairs has the standard error of the difference of their rows.
    """
    mse = error.at(levels)
    mean = mse.mean(axis=1, keepdims=True)
    snr = np.exp(np.asarray(levels, dtype=np.float64))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(mean > 0, mse / mean, 1.0) / np.log(10)
    return np.stack([relative.mean(axis=0), (snr * mse).mean(axis=0)])


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean along the last axis; NaN for a single value, which has none."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)


def t_probability(t: float, dof: int) -> float:
    """P(|X| <= t) for Student's t with an integer number of degrees of freedom.

    Finite sums in theta = atan(t / sqrt(dof))          (Abramowitz and Stegun, 26.7.3 and 26.7.4)
    """
    theta = atan(t / sqrt(dof))
    c, s = cos(theta), sin(theta)
    is_even = dof % 2 == 0
    total, term = 0.0, 1.0 if is_even else c
    for k in range(dof // 2):
        total += term
        term *= c * c * ((2 * k + 1) / (2 * k + 2) if is_even else (2 * k + 2) / (2 * k + 3))
    return s * total if is_even else 2 / pi * (theta + s * total)


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, dof: int) -> float:
    """t with P(|X| <= t) = confidence: half-width of a two-sided interval in standard errors."""
    if not 0 < confidence < 1 or dof < 1:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1) and degrees of freedom {dof} >= 1"
        )
    # Beyond 400 degrees of freedom the sums grow long and the quantile falls by less than 1 %.
    dof = min(dof, 400)
    low, high = 0.0, 1.0
    while t_probability(high, dof) < confidence and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, dof) < confidence else (low, middle)
    return high


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its two-sided confidence interval; NaN half-width for one value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan")
    error = float(_standard_error(array))
    return float(array.mean()), t_quantile(confidence, array.size - 1) * error
