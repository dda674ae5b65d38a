"""Effects of a grid's factors, with intervals.

Analysis of variance by least squares, one row a trial:

    y = seed + A + B + C + A x B + ... + e          (seeds as blocks where cells share them)

Columns are sum-to-zero contrasts, so that the effects of a factor's levels are distances from their
unweighted mean; ranks, not counts of columns, give degrees of freedom, so that missing cells need
no care. A term's sum of squares is what it explains beyond all terms that do not contain it (type
II): the classical one for a complete grid, and well defined where cells failed or seeds are
missing. It is tested against its own changes from seed to seed, MS_e of the term x seeds (see
`scatter.strata`), or, where cells share no seeds, against the scatter within cells. Its share of
the variance is omega^2, near zero on average where nothing is there:

    omega^2 = (SS - dof x MS_e) / (SS_total + MS_e)                                  (Hays 1963)

Of more than two factors, all interactions beyond pairs are one term. With one seed nothing repeats
and the highest interaction serves as error, on the assumption that there is none; with one factor
and one seed there is no error, and no p.
All numbers are compared as logarithms: an effect is a ratio of errors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import combinations
from math import inf, nan, prod, sqrt

import numpy as np

from ddpm.report.labels import place_of, spoken, varied
from ddpm.report.ranking import CONFIDENCE, Ranking
from ddpm.report.reading import Value
from ddpm.report.scatter import Strata, f_survival, rounded, split, strata, tukey_quantile


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A factor's levels compared, the other factors averaged over or fixed.

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


# weights (trials,) -> the mean square that weights @ y is compared with, and its degrees of freedom
Noise = Callable[[np.ndarray], tuple[float, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """One row a trial: its numbers, its cell, its level of each factor, its seed."""

    y: np.ndarray
    cell: np.ndarray
    codes: Mapping[str, np.ndarray]
    values: Mapping[str, tuple[Value, ...]]
    seeds: np.ndarray | None  # None: cells share none, no blocks

    def effect(self, key: str, fixed: Mapping[str, Value], noise: Noise, families: int) -> Effect:
        """A factor's levels compared at the values `fixed` of others, averaged over the rest.

        families: of how many such comparisons the differences of levels hold together.
        """
        rows = np.ones(len(self.y), dtype=bool)
        for other, value in fixed.items():
            rows &= self.codes[other] == place_of(self.values[other], value)
        own = self.columns((key,))
        terms = self._beside(key, [other for other in self.codes if other not in fixed])
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
        variance, dof = noise(weights)
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

    @cached_property
    def within(self) -> tuple[float, int]:
        """Sum of squares left by seeds and cells, and the rank of the fit."""
        return residual(self.y, np.hstack([self.base(), self.cells()]))

    def cells(self) -> np.ndarray:
        """One column a cell, (trials, cells)."""
        return np.eye(int(self.cell.max()) + 1)[self.cell]


def design_of(ranking: Ranking, measure: str) -> Design:
    """The rows of a ranking's trials for one measure, as log10."""
    table = ranking.table(measure)
    rows, columns = np.nonzero(np.isfinite(table))
    values = {key: _levels(ranking, key) for key in ranking.factors}
    of_cells = {
        key: np.array([place_of(values[key], s.cell.get(key)) for s in ranking.standings])
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
        if place_of(values, standing.cell.get(key)) == len(values):
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


@dataclass(frozen=True, kw_only=True)
class Term:
    """A line of the table. keys: its factors; () for seeds and error.

    f, p, share: NaN where untested.  over: the degrees of freedom of what F is taken over.
    """

    name: str
    keys: tuple[str, ...]
    dof: int
    squares: float
    f: float = nan
    p: float = nan
    share: float = nan
    over: float = nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The table of one measure. terms: main effects, then interactions.

    error: all that scatters over seeds, or what serves for it; None without anything.
    strata: the same by factor, which F is taken over where there is any.  seeds: the blocks.
    is_complete: all combinations trained with equally many seeds.  reason: why there is no table.
    """

    measure: str
    factors: tuple[str, ...]
    terms: tuple[Term, ...] = ()
    seeds: Term | None = None
    error: Term | None = None
    strata: Strata | None = None
    total: float = nan
    is_complete: bool = True
    is_one_seed: bool = False
    reason: str | None = None
    design: Design | None = None

    def interactions(self, key: str) -> tuple[Term, ...]:
        """The interactions that a factor takes part in."""
        return tuple(term for term in self.terms if key in term.keys and len(term.keys) > 1)

    def effect(self, key: str, fixed: Mapping[str, Value] | None = None, places: int = 1) -> Effect:
        """A factor's levels compared, at the values `fixed` of others; places: how many such.

        Differences of levels hold at 95 % for all factors and places together.
        """
        assert self.design is not None and self.error is not None
        return self.design.effect(key, fixed or {}, self._noise, places * len(self.factors))

    def _noise(self, weights: np.ndarray) -> tuple[float, float]:
        """One mean square for all, or one a stratum where seeds are blocks."""
        assert self.design is not None and self.error is not None
        if self.strata is not None:
            return self.strata.share(np.bincount(self.design.cell, weights))
        return self.error.squares / self.error.dof, float(self.error.dof)


def analyse(ranking: Ranking, measure: str) -> Analysis:
    """The analysis of variance of one measure, as log10, over the keys in which cells differ."""
    factors = ranking.factors
    if not factors:
        return Analysis(measure=measure, factors=factors, reason=_why_not(ranking))
    design = design_of(ranking, measure)
    found = ranking.spread(measure)
    is_one_seed = found is None
    sets = subsets(factors, 1 if is_one_seed and len(factors) == 2 else 2)
    error = _factor_error(design, sets, is_one_seed)
    by_factor = None
    if design.seeds is not None:
        by_factor = strata(split(ranking.codes), ranking.table(measure))
    total = float(np.square(design.y - design.y.mean()).sum())
    lines = [(term, *_type_two(design, sets, term)) for term in sets]
    if len(factors) > 2 and not is_one_seed:
        lines.append((factors, *_beyond(design, sets)))
    terms = []
    for keys, squares, dof in lines:
        term = Term(name=term_name(keys), keys=keys, dof=dof, squares=squares)
        if dof > 0:
            terms.append(_tested(term, *_noise(error, by_factor, factors, keys), total))
    counts = {len(standing.trials) for standing in ranking.standings}
    return Analysis(
        measure=measure,
        factors=factors,
        terms=tuple(terms),
        seeds=_seeds(design, error, total),
        error=error,
        strata=found.strata if found is not None and found.groups is not None else by_factor,
        total=total,
        is_complete=ranking.filled(factors) == 1 and len(counts) == 1,
        is_one_seed=is_one_seed,
        design=design,
    )


def _noise(
    error: Term | None, by_factor: Strata | None, factors: Sequence[str], keys: Sequence[str]
) -> tuple[float, float]:
    """The mean square that a term is tested against, and its degrees of freedom; NaN for none."""
    if by_factor is not None:
        numbers = tuple(factors.index(key) for key in keys)
        for one, square, dof in zip(
            by_factor.strata, by_factor.squares, by_factor.dofs, strict=True
        ):
            if one.factors == numbers or (not one.factors and len(keys) > 2):
                return float(square), float(dof)
    return (error.squares / error.dof, error.dof) if error is not None else (nan, nan)


def _factor_error(
    design: Design, sets: Sequence[tuple[str, ...]], is_one_seed: bool
) -> Term | None:
    """Scatter over seeds; with one seed the highest interaction."""
    factors = tuple(design.codes)
    if is_one_seed:
        squares, rank = design.residual(sets)
        name = term_name(factors) if len(factors) < 4 else "interactions of three and more"
    else:
        squares, rank = design.within
        name = "seeds within cells" if design.seeds is None else "seeds \u00d7 cells"
    dof = len(design.y) - rank
    return Term(name=name, keys=(), dof=dof, squares=squares) if dof > 0 and squares > 0 else None


def _beyond(design: Design, sets: Sequence[tuple[str, ...]]) -> tuple[float, int]:
    """Sum of squares of the cells beyond pairs of factors, and their degrees of freedom."""
    left, rank = design.residual(sets)
    least, most = design.within
    return max(left - least, 0.0), most - rank


def term_name(keys: Sequence[str]) -> str:
    """`schedule x prediction type`, with a true times sign."""
    return " \u00d7 ".join(map(spoken, keys))


def _why_not(ranking: Ranking) -> str:
    keys = varied(standing.cell for standing in ranking.standings)
    if not keys:
        return "No key of the grid varies among the ranked cells."
    return (
        f"The {len(ranking.standings)} ranked cells are {100 * ranking.filled(keys):.0f} % of the "
        "combinations of their keys' values, too few to separate what each key does."
    )


def _type_two(
    design: Design, terms: Sequence[tuple[str, ...]], term: tuple[str, ...]
) -> tuple[float, int]:
    """Squares of a term beyond all that do not contain it, and their degrees of freedom."""
    without = [other for other in terms if not set(term) <= set(other)]
    left, rank = design.residual(without)
    with_it, with_rank = design.residual([*without, term])
    return max(left - with_it, 0.0), with_rank - rank


def _seeds(design: Design, error: Term | None, total: float) -> Term | None:
    """The term of the seeds beyond the cells; None where they are no blocks."""
    if design.seeds is None:
        return None
    left, rank = residual(design.y, design.cells())
    with_it, with_rank = design.within
    term = Term(name="seeds", keys=(), dof=with_rank - rank, squares=max(left - with_it, 0.0))
    noise = (error.squares / error.dof, float(error.dof)) if error is not None else (nan, nan)
    return _tested(term, *noise, total)


def _tested(term: Term, noise: float, over: float, total: float) -> Term:
    if not noise > 0:
        return term
    f = term.squares / term.dof / noise
    share = max((term.squares - term.dof * noise) / (total + noise), 0.0)
    return replace(term, f=f, p=f_survival(f, term.dof, over), share=share, over=over)
