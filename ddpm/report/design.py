"""Least squares on the factors of a grid: what terms explain, and how a factor's levels compare.

    y = seed + A + B + C + A x B + ... + e          (seeds as blocks where cells share them)

One row a trial. Columns are sum-to-zero contrasts, so that the effects of a factor's levels are
distances from their unweighted mean; ranks, not counts of columns, give degrees of freedom, so that
missing cells need no care. numpy only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from math import inf, prod, sqrt

import numpy as np

from ddpm.quantiles import rounded, tukey_quantile
from ddpm.report.axes import place
from ddpm.report.files import Value
from ddpm.report.ranking import Ranking
from ddpm.report.strata import Strata

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A factor's levels compared, the other factors averaged over or held.

    levels: its values.  means: their distances from the factor's mean.  half_widths: of each of
    `means`, alone, at 95 %.  differences, widths: (L, L), first minus second, and the half-widths
    of intervals that hold for all pairs of levels together, Tukey's, and for all factors and
    places that are looked at.
    """

    key: str
    levels: tuple[Value, ...]
    means: np.ndarray
    half_widths: np.ndarray
    differences: np.ndarray
    widths: np.ndarray

    def sign(self, a: int, b: int) -> int:
        """-1 where level a is lower than b, 1 where it is higher, 0 where that cannot be told."""
        if not abs(self.differences[a, b]) > self.widths[a, b]:
            return 0
        return -1 if self.differences[a, b] < 0 else 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Noise:
    """What effects are held against: one mean square, or one a stratum where seeds are blocks."""

    variance: float
    dof: int
    cells: int
    strata: Strata | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """One row a trial: its numbers, its cell, its level of each factor, its seed."""

    y: np.ndarray
    cell: np.ndarray
    codes: Mapping[str, np.ndarray]
    values: Mapping[str, tuple[Value, ...]]
    seeds: np.ndarray | None  # None: cells share none, no blocks

    def effect(self, key: str, held: Mapping[str, Value], noise: Noise, families: int) -> Effect:
        """A factor's levels compared at the values `held` of others, over the rest of them.

        families: of how many such comparisons the differences of levels hold together.
        """
        rows = np.ones(len(self.y), dtype=bool)
        for other, value in held.items():
            rows &= self.codes[other] == place(self.values[other], value)
        own = self.columns((key,))
        terms = self._beside(key, [other for other in self.codes if other not in held])
        x = np.hstack([own, self.base(), *(self.columns(term) for term in terms)])[rows]
        levels = self.values[key]
        coding = np.zeros((len(levels), x.shape[1]))  # (L, columns)
        coding[:, : own.shape[1]] = _contrasts(len(levels))
        solved = coding @ np.linalg.pinv(x.T @ x, rcond=1e-10, hermitian=True)
        weights = np.zeros((len(levels), len(self.y)))  # (L, trials)
        weights[:, rows] = solved @ x.T
        # Where cells are missing, some levels cannot be compared at all: no interval then.
        lost = coding - weights[:, rows] @ x
        means = weights @ self.y
        single = [self._half_width(w, u, noise, 2, 1) for w, u in zip(weights, lost, strict=True)]
        widths = np.zeros((len(levels), len(levels)))
        for a, b in combinations(range(len(levels)), 2):
            between, missing = weights[a] - weights[b], lost[a] - lost[b]
            width = self._half_width(between, missing, noise, len(levels), families)
            widths[a, b] = widths[b, a] = width
        return Effect(
            key=key,
            levels=levels,
            means=means,
            half_widths=np.array(single),
            differences=means[:, None] - means[None],
            widths=widths,
        )

    def _beside(self, key: str, keys: Sequence[str]) -> list[tuple[str, ...]]:
        """The terms fitted beside a main effect.

        All of them where every cell was trained but seeds are missing, so that the effect is of
        unweighted means of cells; else what other factors do among themselves, as in type II sums.
        In a complete grid both are the same.
        """
        counts = np.bincount(self.cell)
        every = prod(len(values) for values in self.values.values())
        if len(counts) == every and counts.min() < counts.max():
            return [term for term in subsets(keys, len(keys)) if term != (key,)]
        return subsets([other for other in keys if other != key], 2)

    def _half_width(
        self, weights: np.ndarray, lost: np.ndarray, noise: Noise, levels: int, families: int
    ) -> float:
        """Of weights @ y: Tukey's for all pairs of levels of all families together."""
        if np.abs(lost).max() > 1e-6:
            return inf
        variance, dof = noise.variance, float(noise.dof)
        if noise.strata is not None:
            variance, dof = noise.strata.share(np.bincount(self.cell, weights, noise.cells))
        together = 1 - (1 - CONFIDENCE) / families
        size = sqrt(variance * float(weights @ weights))
        return tukey_quantile(together, levels, rounded(dof)) * size

    def base(self) -> np.ndarray:
        """Columns of the mean, and the seeds where they are blocks."""
        one = np.ones((len(self.y), 1))
        if self.seeds is None:
            return one
        return np.hstack([one, _contrasts(int(self.seeds.max()) + 1)[self.seeds]])

    def columns(self, term: Sequence[str]) -> np.ndarray:
        """Columns of a main effect or an interaction."""
        parts = [_contrasts(len(self.values[key]))[self.codes[key]] for key in term]
        rows = len(self.y)
        return reduce(lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(rows, -1), parts)

    def residual(self, terms: Iterable[Sequence[str]]) -> tuple[float, int]:
        """Sum of squares left by seeds and these terms, and the rank of the fit."""
        x = np.hstack([self.base(), *(self.columns(term) for term in terms)])
        return residual(self.y, x)

    def cells(self) -> np.ndarray:
        """One column a cell, (trials, cells)."""
        return np.eye(int(self.cell.max()) + 1)[self.cell]


def design_of(ranking: Ranking, measure: str) -> Design:
    """The rows of a ranking's trials for one measure, as log10."""
    table = ranking.table(measure)
    rows, columns = np.nonzero(np.isfinite(table))
    values = {key: _levels(ranking, key) for key in ranking.factors}
    of_cells = {
        key: np.array([place(values[key], s.cell.get(key)) for s in ranking.standings])
        for key in ranking.factors
    }
    found = ranking.spread(measure)
    are_shared = found is not None and found.paired_dof > 0
    return Design(
        y=table[rows, columns],
        cell=rows,
        codes={key: of_cells[key][rows] for key in ranking.factors},
        values=values,
        seeds=columns if are_shared else None,
    )


def _levels(ranking: Ranking, key: str) -> tuple[Value, ...]:
    """The values of a factor, numbers in order, others as the ranking first has them."""
    values: list[Value] = []
    for standing in ranking.standings:
        if place(values, standing.cell.get(key)) == len(values):
            values.append(standing.cell.get(key))
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return tuple(sorted(values, key=lambda v: float(v)))  # type: ignore[arg-type]
    return tuple(values)


def subsets(keys: Sequence[str], largest: int) -> list[tuple[str, ...]]:
    """All sets of one to `largest` keys, the small ones first."""
    return [one for size in range(1, largest + 1) for one in combinations(keys, size)]


def _contrasts(levels: int) -> np.ndarray:
    """Sum-to-zero coding, (L, L - 1): effects of all levels add up to nothing."""
    return np.vstack([np.eye(levels - 1), -np.ones(levels - 1)])


def residual(y: np.ndarray, x: np.ndarray) -> tuple[float, int]:
    """Sum of squares left by least squares on the columns of x, and their rank."""
    y = y - y.mean()  # every model holds the mean; without it the squares keep their digits
    values, vectors = np.linalg.eigh(x.T @ x)
    kept = values > 1e-9 * values[-1]
    found = (vectors[:, kept].T @ (x.T @ y)) / np.sqrt(values[kept])
    return max(float(y @ y - found @ found), 0.0), int(kept.sum())
