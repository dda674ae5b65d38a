"""Main effects and interactions of a grid's factors: an analysis of variance by least squares.

    y = seed + A + B + C + A x B + ... + e          (seeds as blocks where differences are paired)

A term's sum of squares is what it explains beyond all terms that do not contain it (type II): the
classical one for a complete grid, and well defined where cells failed or seeds are missing. Its
share of the variance is omega^2, near zero on average where nothing is there:

    omega^2 = (SS - dof x MS_e) / (SS_total + MS_e)                                  (Hays 1963)

Of more than two factors, all interactions beyond pairs are one term. With one seed nothing repeats
and the highest interaction serves as error, on the assumption that there is none; with one factor
and one seed there is no error, and no p.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan, prod

import numpy as np

from ddpm.quantiles import f_survival
from ddpm.report.design import Design, Effect, design_of, residual, subsets
from ddpm.report.files import Value
from ddpm.report.labels import spoken, varied
from ddpm.report.ranking import Ranking

_LEAST_FILLED = 0.5  # of the grid's combinations; below it is no grid but a list of points


@dataclass(frozen=True, kw_only=True)
class Term:
    """A line of the table. keys: its factors; () for seeds and error. p, f: NaN where untested."""

    name: str
    keys: tuple[str, ...]
    dof: int
    squares: float
    f: float = nan
    p: float = nan
    share: float = nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Analysis:
    """The table of one measure. terms: main effects, then interactions.

    error: what F is taken over; None where nothing can serve.  seeds: the blocks, where used.
    is_complete: all combinations trained with equally many seeds.  reason: why there is no table.
    """

    measure: str
    factors: tuple[str, ...]
    terms: tuple[Term, ...] = ()
    seeds: Term | None = None
    error: Term | None = None
    total: float = nan
    is_complete: bool = True
    is_one_seed: bool = False
    reason: str | None = None
    design: Design | None = None

    def interactions(self, key: str) -> tuple[Term, ...]:
        """The interactions that a factor takes part in."""
        return tuple(term for term in self.terms if key in term.keys and len(term.keys) > 1)

    def effect(self, key: str, held: Mapping[str, Value] | None = None, places: int = 1) -> Effect:
        """A factor's levels compared, at the values `held` of others; places: how many such."""
        assert self.design is not None and self.error is not None
        noise = self.error.squares / self.error.dof
        return self.design.effect(key, held or {}, noise, self.error.dof, places)


def analyse(ranking: Ranking, measure: str) -> Analysis:
    """The analysis of variance of one measure, as log10, over the keys in which cells differ."""
    factors = varied(standing.cell for standing in ranking.standings)
    reason = _why_not(ranking, factors)
    if reason is not None:
        return Analysis(measure=measure, factors=factors, reason=reason)
    design = design_of(ranking, measure, factors)
    is_one_seed = ranking.spread(measure) is None
    sets = subsets(factors, 1 if is_one_seed and len(factors) == 2 else 2)
    error = _error(design, sets, is_one_seed)
    total = float(np.square(design.y - design.y.mean()).sum())
    lines = [(term, *_type_two(design, sets, term)) for term in sets]
    if len(factors) > 2 and not is_one_seed:
        lines.append((factors, *_beyond(design, sets)))
    counts = {len(standing.summaries) for standing in ranking.standings}
    return Analysis(
        measure=measure,
        factors=factors,
        terms=tuple(_tested(keys, ss, dof, error, total) for keys, ss, dof in lines if dof > 0),
        seeds=_seeds(design, error, total),
        error=error,
        total=total,
        is_complete=len(ranking.standings) == _combinations(ranking, factors) and len(counts) == 1,
        is_one_seed=is_one_seed,
        design=design,
    )


def _error(design: Design, sets: Sequence[tuple[str, ...]], is_one_seed: bool) -> Term | None:
    """What scatters over seeds; with one seed the highest interaction."""
    factors = tuple(design.codes)
    if is_one_seed:
        squares, rank = design.residual(sets)
        name = term_name(factors) if len(factors) < 4 else "interactions of three and more"
    else:
        squares, rank = residual(design.y, np.hstack([design.base(), design.cells()]))
        name = "seeds within cells" if design.seeds is None else "seeds \u00d7 cells"
    dof = len(design.y) - rank
    return Term(name=name, keys=(), dof=dof, squares=squares) if dof > 0 and squares > 0 else None


def _beyond(design: Design, sets: Sequence[tuple[str, ...]]) -> tuple[float, int]:
    """What the cells explain beyond pairs of factors."""
    left, rank = design.residual(sets)
    least, most = residual(design.y, np.hstack([design.base(), design.cells()]))
    return max(left - least, 0.0), most - rank


def term_name(keys: Sequence[str]) -> str:
    """`schedule x prediction type`, with a true times sign."""
    return " \u00d7 ".join(map(spoken, keys))


def _combinations(ranking: Ranking, factors: Sequence[str]) -> int:
    cells = [standing.cell for standing in ranking.standings]
    return prod(len({str(cell.get(key)) for cell in cells}) for key in factors)


def _why_not(ranking: Ranking, factors: Sequence[str]) -> str | None:
    if not factors:
        return "No key of the grid varies among the ranked cells."
    possible = _combinations(ranking, factors)
    if len(ranking.standings) < _LEAST_FILLED * possible:
        return (
            f"The {len(ranking.standings)} ranked cells are too few of {possible} combinations to "
            "separate what each key does."
        )
    return None


def _type_two(
    design: Design, terms: Sequence[tuple[str, ...]], term: tuple[str, ...]
) -> tuple[float, int]:
    """What a term explains beyond all that do not contain it, and its degrees of freedom."""
    without = [other for other in terms if not set(term) <= set(other)]
    left, rank = design.residual(without)
    with_it, with_rank = design.residual([*without, term])
    return max(left - with_it, 0.0), with_rank - rank


def _seeds(design: Design, error: Term | None, total: float) -> Term | None:
    """What the seeds explain beyond the cells; None where they are no blocks."""
    if design.seeds is None:
        return None
    left, rank = residual(design.y, design.cells())
    with_it, with_rank = residual(design.y, np.hstack([design.base(), design.cells()]))
    tested = _tested((), max(left - with_it, 0.0), with_rank - rank, error, total)
    return replace(tested, name="seeds")


def _tested(
    keys: tuple[str, ...], squares: float, dof: int, error: Term | None, total: float
) -> Term:
    term = Term(name=term_name(keys), keys=keys, dof=dof, squares=squares)
    if error is None:
        return term
    noise = error.squares / error.dof
    f = squares / dof / noise
    share = max((squares - dof * noise) / (total + noise), 0.0)
    return replace(term, f=f, p=f_survival(f, dof, error.dof), share=share)
