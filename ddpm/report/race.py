"""SEEDS: auto: which cells need another seed, decided from what all have shown so far.

All cells start with a few seeds. Then, at a few looks fixed beforehand, only those cells get
more that may still be the best by every measure of the headline: those whose differences from the
cells that lead have intervals that hold zero or less. The race is over when one cell is left, when
none is (the measures disagree), or at the most seeds.

Looking again and again finds differences where there are none, so the looks share the error. A
false winner must have seemed better than a cell that is at least as good: of K cells, by
any of K one-sided errors (K - 1 against one that is best, one more where two are) by any of M
measures. Of that error each look spends twice what the one before it did, for most races are
decided late; so a two-sided interval at look l of L has confidence

    1 - 2 x 0.05 / (K M) x 2^(l - 1) / (2^L - 1)

and, whatever the looks have to do with each other (Bonferroni), a race names a false winner at most
once in twenty. The report names a winner of a raced sweep only where it is the cell that the
race leaves.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from ddpm.metrics import t_quantile

ERROR = 0.05
RACE_FILE = "race.json"  # of a sweep's folder: the looks that were taken

# cell -> what each of its seeds gave by one measure, lower is better
Numbers = Mapping[str, Mapping[int, float]]


def left_in_race(candidates: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The cells that every measure leaves, in the order of the first."""
    first, *others = candidates.values()
    return tuple(name for name in first if all(name in names for names in others))


def confidence(number: int, looks: int, cells: int, measures: int) -> float:
    """Of one two-sided interval at look `number` (from 1), so that no false winner is named in 95 %
    of races.
    """
    spent = 2 ** (number - 1) / (2**looks - 1)
    return 1 - 2 * ERROR / (max(cells, 2) * measures) * spent


def race_candidates(
    measures: Mapping[str, Numbers], number: int, looks: int, cells: int
) -> dict[str, tuple[str, ...]]:
    """The cells that may be the best by each measure, the leader first, at look `number` of
    `looks`, from 1.

    measures: the numbers of those still racing by each.  cells: that the race began with.
    """
    level = confidence(number, looks, cells, len(measures))
    return {measure: candidates(numbers, level) for measure, numbers in measures.items()}


def candidates(numbers: Numbers, level: float) -> tuple[str, ...]:
    """The cell with the lowest mean over the seeds that all have, and those that cannot be told to
    be worse: differences are paired by seed. Their spread is pooled over all these cells (a
    randomised block design); that of two cells' own differences is used where it is larger, with
    its own few degrees of freedom where it is more than twice as large.
    """
    there = {cell: seeds for cell, seeds in numbers.items() if seeds}
    shared = sorted(set.intersection(*(set(seeds) for seeds in there.values()))) if there else []
    names = list(there)
    if len(names) < 2 or len(shared) < 2:
        return tuple(numbers)  # nothing is known yet: all stay in the race
    block = np.array([[there[name][seed] for seed in shared] for name in names])
    order = np.argsort(block.mean(axis=1), kind="stable")
    first = block[order[0]]
    pooled = _pooled(block)
    return tuple(
        names[row]
        for row in order
        if row == order[0] or not _is_above(block[row] - first, pooled, len(names), level)
    )


def _pooled(block: NDArray[np.float64]) -> float:
    """Variance of a difference, from what cell and seed means leave over."""
    cells, seeds = block.shape
    left = block - block.mean(axis=1, keepdims=True) - block.mean(axis=0) + block.mean()
    return 2 * float(np.square(left).sum()) / ((cells - 1) * (seeds - 1))


def _is_above(differences: NDArray[np.float64], pooled: float, cells: int, level: float) -> bool:
    """True where the interval of the mean difference lies above zero."""
    count = len(differences)
    own = float(differences.var(ddof=1))
    dof = (cells - 1) * (count - 1) if own <= 2 * pooled else count - 1
    width = t_quantile(level, dof) * sqrt(max(own, pooled) / count)
    return float(differences.mean()) > width


def decided_for(looked: Sequence[Mapping[str, object]]) -> str | None:
    """The one cell that the last look has left; None where there is none, or several."""
    found = looked[-1].get("candidates") if looked else None
    if not isinstance(found, dict) or not found:
        return None
    left = left_in_race(
        {measure: names for measure, names in found.items() if isinstance(names, list)}
    )
    return left[0] if len(left) == 1 else None
