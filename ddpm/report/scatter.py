"""Scatter of cells over training seeds, and the error of a difference of two cells.

All trials of a seed share batches, noise and draws of time, so a seed may be good or bad for all:

    y[c, s] = cell[c] + seed[s] + e[c, s]     paired: differences of cells leave the seed out
    y[c, s] = cell[c] + e[c, s]               unpaired: the seed is part of the scatter

Both are least squares; the scatter is pooled over cells, since few seeds say little about their
own. With M the mean square of e, the pooled ratio of variances of a difference is M paired over M
unpaired. Where seeds are shared the paired interval holds whatever the seeds do. The unpaired one
is only taken where it is narrower and choosing by the data is harmless (`CHOICE_DOF`), once for all
comparisons. Cells that scatter far more than the others are set apart: comparisons with them rest
on the spread of the two alone.

Strata. A seed may favour one prediction type in all its cells. Then cells that differ in prediction
type scatter more, and those that share it less, than a common M says. The space of contrasts of
cells is split into main effects, pairs of factors and the rest, T = A, B, ..., A x B, ...; with P_T
the projection on T and M_T the mean square of T x seeds,

    Var(c . cell means) = v sum_T w_T M_T,    w_T = |P_T c|^2 / |c|^2,    v M if all M_T were one M

on as many degrees of freedom as Satterthwaite (1946) gives. A main effect so is tested against its
own changes over seeds, which is the F test of a design with seeds as random blocks.

Unequal scatter. One prediction type may scatter over seeds many times as much as another. Then one
common figure is too small for the first and too large for the second, and real winners are lost.
Levels of a factor whose mean squares differ by more than chance (F tests, Bonferroni for every way
to part the levels) become groups. Each group has a mean square of its own, pooled over its cells
alone and split into strata as above; a difference between groups is also tested against what the
difference of the two groups' means does from seed to seed. Satterthwaite's degrees of freedom make
this the paired form of Games and Howell (1976), and unpaired their form itself. An inequality that
may be chance (p >= 0.05) is used only where it widens an interval.

Quantiles, in standard errors of one difference, for many comparisons at once: Tukey's of all pairs
of k means, so also those against the best, which the data have picked; Dunnett's of k - 1 means
against one chosen beforehand. Both are probabilities that every comparison covers its truth,
integrals over the common standard normal z and over s, the estimated spread as a share of the true
one (s^2 dof is chi-square):

    Tukey 1953    P(q) = E_s k int phi(z) [Phi(z) - Phi(z - q s)]^(k - 1) dz
    Dunnett 1955  P(d) = E_s int phi(z) prod_i [Phi((l_i z + d s) / r_i)
                                                - Phi((l_i z - d s) / r_i)] dz

with correlations l_i l_j of the comparisons, r_i^2 = 1 - l_i^2. Of scipy only `special` is used,
which loads faster than scipy.stats.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import combinations
from math import exp, floor, inf, log, nan, pi, sqrt

import numpy as np
from scipy import special

from ddpm.metrics import t_quantile


@dataclass(frozen=True, kw_only=True, eq=False)
class Stratum:
    """A main effect, an interaction of two, or all beyond. factors: their numbers, () for the rest.

    basis: (C, d) orthonormal columns, orthogonal to all before and to the mean of cells.
    """

    factors: tuple[int, ...]
    basis: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """The strata of some cells with the mean square of each times seeds, and its degrees.

    floor: strata by groups of cells that may scatter unequally by chance alone. Their variance is
    taken where it is larger, on the common degrees of freedom; within the widest group on degrees
    halfway between, which simulations found to cover.
    """

    strata: tuple[Stratum, ...]
    squares: np.ndarray
    dofs: np.ndarray
    floor: "Strata | None" = None
    widest: tuple[int, ...] = ()

    def share(self, contrast: np.ndarray) -> tuple[float, float]:
        """sum_T w_T M_T of a contrast of cells, and its degrees of freedom."""
        parts = [np.square(one.basis.T @ contrast).sum() for one in self.strata]
        variance, dof = map(float, self._made_of(np.array(parts)))
        return (
            (variance, dof)
            if self.floor is None
            else max((variance, dof), self.floor.share(contrast))
        )

    def of_pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The same of all differences of two cells, (C, C) each."""
        products = [one.basis @ one.basis.T for one in self.strata]
        spreads = [np.diag(product) for product in products]
        parts = [
            spread[:, None] + spread[None] - 2 * product
            for spread, product in zip(spreads, products, strict=True)
        ]
        # squares: what rounding left below zero would be the whole of a variance that is zero
        variances, dofs = self._made_of(np.maximum(parts, 0.0))
        if self.floor is not None:
            others, other_dofs = self.floor.of_pairs()
            inside = np.zeros(variances.shape, dtype=bool)
            inside[np.ix_(self.widest, self.widest)] = True
            wider = others > variances
            halfway = (dofs + other_dofs) / 2
            dofs = np.where(wider & inside, halfway, dofs)
            return np.where(wider, others, variances), dofs
        return variances, dofs

    def _made_of(self, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """parts: (T, ...) of |P_T c|^2."""
        shape = (-1, *(1,) * (parts.ndim - 1))
        whole = parts.sum(axis=0)
        weights = np.divide(parts, whole, out=np.zeros_like(parts), where=whole > 1e-12)
        terms = weights * self.squares.reshape(shape)
        total = terms.sum(axis=0)
        below = (terms * terms / self.dofs.reshape(shape)).sum(axis=0)
        dofs = np.full_like(total, self.dofs.sum())
        return total, np.divide(total * total, below, out=dofs, where=below > 0)


def split(codes: np.ndarray, groups: Sequence[np.ndarray] = ()) -> tuple[Stratum, ...]:
    """The strata of cells. codes: (C, factors), the number of each cell's level of each factor.

    groups: places of cells that scatter alike; strata are then within groups, and one for each
    group against all that follow it.
    """
    cells, factors = codes.shape
    if groups:
        return _split_groups(codes, groups)
    known = np.full((cells, 1), 1 / np.sqrt(cells))
    found = []
    for size in (1, 2):
        for term in combinations(range(factors), size) if factors > 1 else ():
            _, levels = np.unique(codes[:, term], axis=0, return_inverse=True)
            columns = np.eye(int(levels.max()) + 1)[levels.ravel()]
            basis = _beyond(columns, known)
            if basis.shape[1]:
                found.append(Stratum(factors=term, basis=basis))
                known = np.hstack([known, basis])
    rest = _beyond(np.eye(cells), known)
    if rest.shape[1]:
        found.append(Stratum(factors=() if factors != 1 else (0,), basis=rest))
    return tuple(found)


def _split_groups(codes: np.ndarray, groups: Sequence[np.ndarray]) -> tuple[Stratum, ...]:
    cells = len(codes)
    found = []
    for place, group in enumerate(groups):
        for one in split(codes[group]):
            basis = np.zeros((cells, one.basis.shape[1]))
            basis[group] = one.basis
            found.append(Stratum(factors=(), basis=basis))
        if later := groups[place + 1 :]:
            rest = np.concatenate(later)
            between = np.zeros((cells, 1))
            between[group], between[rest] = 1 / len(group), -1 / len(rest)
            found.append(Stratum(factors=(), basis=between / np.linalg.norm(between)))
    return tuple(found)


def strata(parts: Sequence[Stratum], values: np.ndarray) -> Strata | None:
    """The mean squares from (cells, seeds); only seeds that all cells have, None below two."""
    whole = values[:, np.isfinite(values).all(axis=0)]
    seeds = whole.shape[1]
    if seeds < 2 or not parts:
        return None
    centred = whole - whole.mean(axis=1, keepdims=True)
    dofs = np.array([one.basis.shape[1] * (seeds - 1) for one in parts], dtype=np.float64)
    sums = np.array([np.square(one.basis.T @ centred).sum() for one in parts])
    return Strata(strata=tuple(parts), squares=sums / dofs, dofs=dofs)


def _beyond(columns: np.ndarray, known: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what columns span beyond `known`, whose columns are orthonormal."""
    left = columns - known @ (known.T @ columns)
    vectors, sizes, _ = np.linalg.svd(left, full_matrices=False)
    return vectors[:, sizes > 1e-9]


_NODES = 128


def rounded(dof: float) -> float:
    """Degrees of freedom rounded down to a half, above 20 to a whole: few quantiles serve many."""
    return max(floor(dof) if dof > 20 else floor(2 * dof) / 2, 0.5)


def f_survival(f: float, dof: float, error_dof: float) -> float:
    """P(F > f) of Fisher's F distribution: the p-value of a ratio of mean squares."""
    return float(special.fdtrc(dof, error_dof, f))


@lru_cache(maxsize=512)
def tukey_quantile(confidence: float, means: int, dof: float) -> float:
    """Half-width of simultaneous intervals for all differences of `means` means.

    In standard errors of a difference: the quantile of the studentized range over sqrt 2. For two
    means it is Student's t. Exact for equal numbers, conservative for unequal ones (Hayter 1984).
    """
    _check(confidence, means, dof)
    shares, weights = _shares_of_spread(dof)
    z, density = _normal()

    def probability(width: float) -> float:
        ends = sqrt(2) * width * shares[:, None]
        inside = (special.ndtr(z) - special.ndtr(z - ends)) ** (means - 1)
        return float(weights @ (means * (inside @ density)))

    return _invert(probability, confidence)


@lru_cache(maxsize=512)
def dunnett_quantile(confidence: float, loads: tuple[float, ...], dof: float) -> float:
    """Half-width of simultaneous two-sided intervals against one mean chosen beforehand.

    loads: one for each comparison, whose correlations are their products. Means of n_i values
    against one of n_0 have sqrt(n_i / (n_i + n_0)): 0.71 for equal numbers. Zeros give Sidak's
    quantile, which is conservative whatever the correlations.
    """
    _check(confidence, len(loads) + 1, dof)
    shares, weights = _shares_of_spread(dof)
    z, density = _normal()
    counts = Counter(loads)

    def probability(width: float) -> float:
        inside = np.ones((len(shares), len(z)))
        for load, count in counts.items():
            rest = sqrt(1 - load * load)
            ends = width * shares[:, None]
            high, low = (load * z + ends) / rest, (load * z - ends) / rest
            inside *= (special.ndtr(high) - special.ndtr(low)) ** count
        return float(weights @ (inside @ density))

    return _invert(probability, confidence)


def _check(confidence: float, means: int, dof: float) -> None:
    if not 0 < confidence < 1 or means < 2 or not dof > 0:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1), degrees of freedom {dof} be above 0 and "
            f"means {means} at least 2"
        )


def _shares_of_spread(dof: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of s, estimated over true spread, and their probabilities; s = 1 for endless dof."""
    if not np.isfinite(dof):
        return np.ones(1), np.ones(1)
    nodes, weights = _legendre()
    survival = (1 - nodes) / 2
    return np.sqrt(special.chdtri(dof, survival) / dof), weights / 2


def _normal() -> tuple[np.ndarray, np.ndarray]:
    """Values of a standard normal variable and their probabilities."""
    nodes, weights = _legendre()
    z = 8.5 * nodes
    return z, 8.5 * weights * np.exp(-z * z / 2) / sqrt(2 * pi)


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NODES)


def _invert(probability: Callable[[float], float], confidence: float) -> float:
    """The width of this probability: false position (Illinois), on scales that straighten it."""
    wanted = special.ndtri(confidence)

    def above(place: float) -> float:
        return float(special.ndtri(min(probability(exp(place)), 1 - 1e-15)) - wanted)

    low, high = log(0.5), log(4.0)
    at_low, at_high = above(low), above(high)
    while at_high < 0 and high < 20:
        low, at_low, high = high, at_high, high + 1
        at_high = above(high)
    while at_low > 0:
        high, at_high, low = low, at_low, low - 2
        at_low = above(low)
    for _ in range(60):
        middle = high - at_high * (high - low) / (at_high - at_low)
        value = above(middle)
        if abs(value) < 1e-9:
            break
        if value * at_high < 0:
            low, at_low = high, at_high
        else:
            at_low /= 2
        high, at_high = middle, value
    return exp(middle)


# With fewer degrees of freedom, the narrower of two intervals covers noticeably less than it says.
CHOICE_DOF = 20
_OUTLIER = 0.02
UNEQUAL = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First minus second cell. error: standard error; dof: the degrees of freedom it rests on."""

    mean: float
    error: float
    dof: float
    is_own: bool = False  # rests on the spread of the two cells alone


@dataclass(frozen=True, kw_only=True, eq=False)
class Spread:
    """Both fits of a (cells, seeds) array of one number, NaN where a trial is missing.

    apart: cells that scatter far more than the others, and are left out of what follows.
    paired, unpaired: mean squares of e, NaN without degrees of freedom.
    strata: the paired one by factor, where differences are paired, or either by group.
    groups: cells that scatter alike, the widest group first; None where all do.
    links: (C,) cells joined by a chain of shared seeds have the same number.
    """

    values: np.ndarray
    means: np.ndarray
    covariance: np.ndarray
    links: np.ndarray
    paired: float
    unpaired: float
    paired_dof: int
    unpaired_dof: int
    is_paired: bool
    apart: tuple[int, ...]
    strata: Strata | None
    groups: "Groups | None" = None

    @property
    def variance(self) -> float:
        """The mean square that intervals use."""
        return self.paired if self.is_paired else self.unpaired

    @property
    def dof(self) -> int:
        """Its degrees of freedom."""
        return self.paired_dof if self.is_paired else self.unpaired_dof

    @property
    def ratio(self) -> float:
        """Paired over unpaired variance of a difference, pooled; NaN where nothing is paired."""
        return self.paired / self.unpaired if self.unpaired > 0 else nan

    def ratio_of(self, a: int, b: int) -> float:
        """The same from the seeds these two cells share alone; NaN for fewer than two."""
        both = self.values[[a, b]][:, np.isfinite(self.values[[a, b]]).all(axis=0)]
        if both.shape[1] < 2:
            return nan
        unpaired = float(both.var(axis=1, ddof=1).sum())
        return float((both[0] - both[1]).var(ddof=1)) / unpaired if unpaired > 0 else nan

    def difference(self, a: int, b: int) -> Difference:
        """Cell a minus cell b; an endless error where nothing links the two."""
        if {a, b} & set(self.apart):
            return self._own(a, b)
        if self.is_paired and self.links[a] != self.links[b]:
            return Difference(mean=self._plain(a, b), error=inf, dof=1)
        variances, dofs = self._pooled
        mean = float(self.means[a] - self.means[b])
        return Difference(mean=mean, error=sqrt(variances[a, b]), dof=float(dofs[a, b]))

    @cached_property
    def _pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Variances of all differences, (C, C), and their degrees of freedom."""
        spread = np.diag(self.covariance)
        factors = np.maximum(spread[:, None] + spread[None] - 2 * self.covariance, 0.0)
        if self.strata is None:
            return self.variance * factors, np.full_like(factors, self.dof)
        shares, dofs = np.ones_like(factors), np.ones_like(factors)
        rest = np.setdiff1d(np.arange(len(self.values)), self.apart)
        shares[np.ix_(rest, rest)], dofs[np.ix_(rest, rest)] = self.strata.of_pairs()
        return shares * factors, dofs

    def _own(self, a: int, b: int) -> Difference:
        rows = self.values[[a, b]]
        if self.is_paired:
            shared = rows[:, np.isfinite(rows).all(axis=0)]
            count = shared.shape[1]
            if count < 2:
                return Difference(mean=self._plain(a, b), error=inf, dof=1, is_own=True)
            differences = shared[0] - shared[1]
            error = float(differences.std(ddof=1)) / sqrt(count)
            mean = float(differences.mean())
            return Difference(mean=mean, error=error, dof=count - 1, is_own=True)
        parts = [row[np.isfinite(row)] for row in rows]
        if min(map(len, parts)) < 2:
            return Difference(mean=self._plain(a, b), error=inf, dof=1, is_own=True)
        squares = [float(part.var(ddof=1)) / len(part) for part in parts]
        below = sum(s * s / (len(p) - 1) for s, p in zip(squares, parts, strict=True))
        dof = sum(squares) ** 2 / below if below > 0 else min(map(len, parts)) - 1.0
        mean = self._plain(a, b)
        return Difference(mean=mean, error=sqrt(sum(squares)), dof=dof, is_own=True)

    def _plain(self, a: int, b: int) -> float:
        means = np.nanmean(self.values[[a, b]], axis=1)
        return float(means[0] - means[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Cells grouped by levels of the one factor whose levels scatter unequally over seeds.

    factor: its number.  cells: their places, the widest group first.  deviations: the standard
    deviation of e in each.  p: of the first cut, for all ways to cut and all factors.
    """

    factor: int
    cells: tuple[np.ndarray, ...]
    deviations: tuple[float, ...]
    p: float

    @property
    def is_certain(self) -> bool:
        """True where chance alone is an unlikely reason."""
        return self.p < UNEQUAL


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    means: np.ndarray
    covariance: np.ndarray  # of the means, in units of the variance of e; right for differences
    squares: np.ndarray  # (C,) sum of squares of e
    dof: int


def spread(
    values: np.ndarray, *, codes: np.ndarray | None = None, is_paired: bool | None = None
) -> Spread | None:
    """Both fits of (cells, seeds); None where no cell has two seeds, so that nothing scatters.

    codes: (C, factors), each cell's level of each factor of a grid.
    is_paired: take this fit rather than choose.
    """
    links = _links(np.isfinite(values))
    pairable = _paired(values, links).dof > 0
    groups = None if codes is None else _groups(values, codes, is_paired is not False and pairable)
    is_unequal = groups is not None and groups.is_certain
    apart = () if is_unequal else _apart(values, pairable)
    rest = [c for c in range(len(values)) if c not in apart]
    by_seed = _paired(values[rest], _links(np.isfinite(values[rest])))
    by_cell = _unpaired(values[rest])
    if by_cell.dof < 1:
        return None
    paired = float(by_seed.squares.sum()) / by_seed.dof if by_seed.dof > 0 else nan
    unpaired = float(by_cell.squares.sum()) / by_cell.dof
    if is_paired is None:
        is_paired = _is_paired(paired, by_seed.dof, unpaired, by_cell.dof)
    is_paired = is_paired and by_seed.dof > 0
    by_factor = None
    if apart:
        groups = None  # single cells scatter more, no level of a factor
    if codes is not None and groups is not None:
        by_factor = _strata_of_groups(groups, values, codes, is_paired)
        groups = groups if by_factor is not None else None  # too few seeds that all cells have
    elif is_paired and codes is not None and codes.shape[1] > 1:
        by_factor = strata(split(codes[rest]), values[rest])
    whole = _paired(values, links) if is_paired else _unpaired(values)
    return Spread(
        values=values,
        means=whole.means,
        covariance=whole.covariance,
        links=links,
        paired=paired,
        unpaired=unpaired,
        paired_dof=by_seed.dof,
        unpaired_dof=by_cell.dof,
        is_paired=is_paired,
        apart=apart,
        strata=by_factor,
        groups=groups,
    )


def _is_paired(paired: float, paired_dof: int, unpaired: float, unpaired_dof: int) -> bool:
    """True to pair: where seeds are shared, unless the other interval is narrower by right."""
    if paired_dof < CHOICE_DOF:
        return paired_dof > 0
    widths = [
        t_quantile(0.95, dof) * sqrt(square)
        for square, dof in ((paired, paired_dof), (unpaired, unpaired_dof))
    ]
    return widths[0] <= widths[1]


def _unpaired(values: np.ndarray) -> _Fit:
    present = np.isfinite(values)
    counts = present.sum(axis=1)
    means = np.nanmean(values, axis=1)
    squares = np.nansum(np.square(values - means[:, None]), axis=1)
    dof = int(counts.sum()) - len(values)
    return _Fit(means=means, covariance=np.diag(1 / counts), squares=squares, dof=dof)


def _paired(values: np.ndarray, links: np.ndarray) -> _Fit:
    """Least squares of cells and seeds, the seeds eliminated first."""
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    in_seed = present.sum(axis=0)
    used = in_seed > 0
    present, filled, in_seed = present[:, used], filled[:, used], in_seed[used]
    share = present / in_seed  # (C, S)
    if present.all():
        covariance = np.eye(len(values)) / values.shape[1]
    else:
        covariance = np.linalg.pinv(np.diag(present.sum(axis=1)) - share @ present.T, rcond=1e-9)
    means = covariance @ (filled - share * filled.sum(axis=0)).sum(axis=1)
    residuals = filled - means[:, None]
    residuals = np.where(present, residuals - (share * residuals).sum(axis=0), 0.0)
    cells, seeds = present.shape
    dof = int(present.sum()) - cells - seeds + len(set(links.tolist()))
    squares = np.square(residuals).sum(axis=1)
    return _Fit(means=means, covariance=covariance, squares=squares, dof=dof)


def _links(present: np.ndarray) -> np.ndarray:
    """Numbers cells so that those joined by a chain of shared seeds have the same."""
    links = np.arange(len(present))
    if present.all(axis=0).any():
        return np.zeros_like(links)
    while True:
        before = links.copy()
        for column in present.T:
            if column.any():
                # A seed joins all its cells, and with them whatever they were joined to.
                joined = set(links[column].tolist())
                links[[one in joined for one in links.tolist()]] = min(joined)
        if (links == before).all():
            return links


def _groups(values: np.ndarray, codes: np.ndarray, is_paired: bool) -> Groups | None:
    """The factor whose levels scatter the most unequally, and its groups; None without any."""
    found = []
    for factor, column in enumerate(codes.T):
        levels = [np.flatnonzero(column == level) for level in np.unique(column)]
        p, parts = _part(values, levels, is_paired)
        if len(parts) > 1:
            found.append((p * codes.shape[1], factor, parts))
    if not found:
        return None
    p, factor, parts = min(found, key=lambda one: one[0])
    if p >= 1:
        return None
    squares = [_mean_square(values[cells], is_paired)[0] for cells in parts]
    deviations = tuple(map(sqrt, squares))
    return Groups(factor=factor, cells=tuple(parts), deviations=deviations, p=p)


def _part(
    values: np.ndarray, levels: list[np.ndarray], is_paired: bool, most: float = 1.0
) -> tuple[float, list[np.ndarray]]:
    """Levels of a factor parted into groups, the widest first, and the p-value of the first cut.

    most: the p-value from which levels stay together.
    """
    found = [(*_mean_square(values[cells], is_paired), cells) for cells in levels]
    together = [np.sort(np.concatenate(levels))]
    if len(levels) < 2 or min(dof for _, dof, _ in found) < 1:
        return 1.0, together
    found.sort(key=lambda one: -one[0])
    ways = 2 ** len(found) - 2
    p, cut = min((ways * _p_wider(found[:k], found[k:]), k) for k in range(1, len(found)))
    if p >= most:
        return p, together
    sides = [[cells for _, _, cells in part] for part in (found[:cut], found[cut:])]
    return p, [part for side in sides for part in _part(values, side, is_paired, UNEQUAL)[1]]


def _p_wider(
    wide: Sequence[tuple[float, int, np.ndarray]], rest: Sequence[tuple[float, int, np.ndarray]]
) -> float:
    """P of so large a ratio of the pooled mean squares of two sets of levels (F test)."""
    dofs = [sum(dof for _, dof, _ in part) for part in (wide, rest)]
    squares = [
        sum(square * dof for square, dof, _ in part) / total
        for part, total in zip((wide, rest), dofs, strict=True)
    ]
    if squares[1] <= 0:
        return 0.0 if squares[0] > 0 else 1.0
    return f_survival(squares[0] / squares[1], dofs[0], dofs[1])


def _mean_square(values: np.ndarray, is_paired: bool) -> tuple[float, int]:
    """The mean square of e in some cells by themselves, and its degrees of freedom."""
    fit = _paired(values, _links(np.isfinite(values))) if is_paired else _unpaired(values)
    return (float(fit.squares.sum()) / fit.dof if fit.dof > 0 else nan), fit.dof


def _strata_of_groups(
    groups: Groups, values: np.ndarray, codes: np.ndarray, is_paired: bool
) -> Strata | None:
    """Strata by group; where the groups may be chance, the common ones with these as floor."""
    common: Strata | None
    if is_paired:
        by_group = strata(split(codes, groups.cells), values)
        common = strata(split(codes), values)
    else:
        by_group = _by_cells(values, groups.cells)
        common = _by_cells(values, [np.arange(len(values))])
    if groups.is_certain or common is None:
        return by_group
    return replace(common, floor=by_group, widest=tuple(map(int, groups.cells[0])))


def _by_cells(values: np.ndarray, groups: Sequence[np.ndarray]) -> Strata:
    """Scatter within cells, pooled over each group of them."""
    found = [_mean_square(values[cells], False) for cells in groups]
    own = np.eye(len(values))
    return Strata(
        strata=tuple(Stratum(factors=(), basis=own[:, cells]) for cells in groups),
        squares=np.array([square for square, _ in found]),
        dofs=np.array([dof for _, dof in found], dtype=np.float64),
    )


def _apart(values: np.ndarray, is_paired: bool) -> tuple[int, ...]:
    """Cells whose mean square is too large for that of the rest.

    An F test of the largest, with Bonferroni's correction for having been picked (Cochran 1941),
    repeated on what remains as long as three cells do.
    """
    rest, apart = list(range(len(values))), []
    while len(rest) > 3:
        part = values[rest]
        fit = _paired(part, _links(np.isfinite(part))) if is_paired else _unpaired(part)
        counts = np.isfinite(part).sum(axis=1)
        shares = np.maximum(counts - 1, 0) * fit.dof / max(int((counts - 1).sum()), 1)
        if fit.dof < 1:
            break
        squares = np.divide(fit.squares, shares, out=np.zeros(len(rest)), where=shares > 0)
        worst = int(np.argmax(squares))
        others = float(fit.squares.sum() - fit.squares[worst])
        error_dof = fit.dof - float(shares[worst])
        if error_dof <= 0 or others <= 0:
            break
        f = float(squares[worst]) / (others / error_dof)
        if f_survival(f, float(shares[worst]), error_dof) * len(rest) > _OUTLIER:
            break
        apart.append(rest.pop(worst))
    return tuple(sorted(apart))
