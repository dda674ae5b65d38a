"""Main effects and interactions of a grid's factors: an analysis of variance by least squares.

    y = seed + A + B + C + A x B + ... + e          (seeds as blocks where cells share them)

A term's sum of squares is what it explains beyond all terms that do not contain it (type II): the
classical one for a complete grid, and well defined where cells failed or seeds are missing. It is
held against its own changes from seed to seed, MS_e of the term x seeds (see `strata`), or, where
cells share no seeds, against the scatter within cells. Its share of the variance is omega^2, near
zero on average where nothing is there:

    omega^2 = (SS - dof x MS_e) / (SS_total + MS_e)                                  (Hays 1963)

Of more than two factors, all interactions beyond pairs are one term. With one seed nothing repeats
and the highest interaction serves as error, on the assumption that there is none; with one factor
and one seed there is no error, and no p.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan

import numpy as np

from ddpm.quantiles import f_survival
from ddpm.report.design import Design, Effect, Noise, design_of, residual, subsets
from ddpm.report.files import Value
from ddpm.report.labels import spoken, varied
from ddpm.report.ranking import Ranking
from ddpm.report.strata import Strata, split, strata


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

    def effect(self, key: str, held: Mapping[str, Value] | None = None, places: int = 1) -> Effect:
        """A factor's levels compared, at the values `held` of others; places: how many such.

        Differences of levels hold at 95 % for all factors and places together.
        """
        assert self.design is not None and self.error is not None
        noise = Noise(
            variance=self.error.squares / self.error.dof,
            dof=self.error.dof,
            cells=int(self.design.cell.max()) + 1,
            strata=self.strata,
        )
        return self.design.effect(key, held or {}, noise, places * len(self.factors))


def analyse(ranking: Ranking, measure: str) -> Analysis:
    """The analysis of variance of one measure, as log10, over the keys in which cells differ."""
    factors = ranking.factors
    if not factors:
        return Analysis(measure=measure, factors=factors, reason=_why_not(ranking))
    design = design_of(ranking, measure)
    is_one_seed = ranking.spread(measure) is None
    sets = subsets(factors, 1 if is_one_seed and len(factors) == 2 else 2)
    error = _error(design, sets, is_one_seed)
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
    counts = {len(standing.summaries) for standing in ranking.standings}
    return Analysis(
        measure=measure,
        factors=factors,
        terms=tuple(terms),
        seeds=_seeds(design, error, total),
        error=error,
        strata=by_factor,
        total=total,
        is_complete=ranking.filled(factors) == 1 and len(counts) == 1,
        is_one_seed=is_one_seed,
        design=design,
    )


def _noise(
    error: Term | None, by_factor: Strata | None, factors: Sequence[str], keys: Sequence[str]
) -> tuple[float, float]:
    """The mean square that a term is held against, and its degrees of freedom; NaN for none."""
    if by_factor is not None:
        numbers = tuple(factors.index(key) for key in keys)
        for one, square, dof in zip(
            by_factor.strata, by_factor.squares, by_factor.dofs, strict=True
        ):
            if one.factors == numbers or (not one.factors and len(keys) > 2):
                return float(square), float(dof)
    return (error.squares / error.dof, error.dof) if error is not None else (nan, nan)


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
    term = Term(name="seeds", keys=(), dof=with_rank - rank, squares=max(left - with_it, 0.0))
    noise = (error.squares / error.dof, float(error.dof)) if error is not None else (nan, nan)
    return _tested(term, *noise, total)


def _tested(term: Term, noise: float, over: float, total: float) -> Term:
    if not noise > 0:
        return term
    f = term.squares / term.dof / noise
    share = max((term.squares - term.dof * noise) / (total + noise), 0.0)
    return replace(term, f=f, p=f_survival(f, term.dof, over), share=share, over=over)
