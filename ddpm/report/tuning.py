"""Numbers of SPACE chosen within each cell, and by how much that moves the cells (TUNE.WITHIN).

Each cell was trained with the same draws of SPACE, on seeds of their own and for a third of the
length; each training was measured by averages of all EVALUATION.EMA_LENGTHS, one more choice.
Within a cell the draw with the lowest mean of log10 over the headline is chosen; the
comparison then rests on fresh seeds alone, so that nothing is both chosen and judged on the same
trainings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.report.ranking import Ranking, Standing, kendall_tau, rank
from ddpm.report.reading import SweepResults, TrialResult, Value, grouped

LENGTH = "EVALUATION.EMA_LENGTHS"  # chosen among those of one training


@dataclass(frozen=True, kw_only=True)
class TunedCell:
    """A cell of GRID with its tuning trainings, one standing a draw of SPACE.

    best: of `draws`.  is_at_edge: whether a chosen number is the lowest or highest that was tried.
    """

    cell: Mapping[str, Value]
    draws: tuple[Standing, ...]
    best: Standing
    is_at_edge: bool


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """All cells that could be tuned. ranking: of all draws in all cells."""

    keys: tuple[str, ...]
    ranking: Ranking
    cells: tuple[TunedCell, ...]

    def values(self, draw: Standing) -> dict[str, Value]:
        """The numbers of SPACE of a draw."""
        return {key: draw.cell[key] for key in self.keys}

    def score(self, standing: Standing) -> float:
        """Mean of log10 over the measures, lower is better.

        Draws that samples do not resolve are equal by that measure: all count as the lowest of
        their evaluation errors, since the ratio of those says nothing.
        """
        return float(np.mean([self._log10(standing, measure) for measure in self.ranking.measures]))

    def _log10(self, standing: Standing, measure: str) -> float:
        is_resolved = standing.is_resolved(measure)
        return standing.log10(measure) if is_resolved else self._floors[measure]

    @cached_property
    def _floors(self) -> dict[str, float]:
        """By measure the lowest evaluation error of a draw that is not resolved."""
        every = [*self.ranking.standings, *self.ranking.set_apart]
        return {
            m: min((one.log10(m) for one in every if not one.is_resolved(m)), default=nan)
            for m in self.ranking.measures
        }

    def order(self, standing: Standing) -> tuple[float, float]:
        """The score, then, of draws that are equal by it, the x0-error."""
        error = standing.log10(X0_MEASURES[0]) if standing.has(X0_MEASURES[0]) else inf
        return self.score(standing), error

    def order_kept(self) -> tuple[float, dict[str, Value]] | None:
        """Kendall's tau between the order of the cells at the best draw for all and each at its
        own, and that draw; None for fewer than three cells or where no draw was trained in all.
        """
        draws = (draw for one in self.cells for draw in one.draws)
        by_draw = grouped(draws, lambda draw: str(self.values(draw)))
        whole = [some for some in by_draw.values() if len(some) == len(self.cells)]
        if len(self.cells) < 3 or not whole:
            return None
        common = min(whole, key=lambda some: sum(map(self.score, some)))
        before = np.array([self.score(standing) for standing in common])
        after = np.array([self.score(one.best) for one in self.cells])
        return kendall_tau(before, after), self.values(common[0])


def tuning_of(sweep: SweepResults) -> Tuning | None:
    """The tuning within the cells of a sweep; None where nothing was tuned."""
    if not sweep.tuning:
        return None
    trials = tuple(one for trial in sweep.tuning for one in _by_length(trial))
    keys = tuple(sweep.space)
    if len({one.cell.get(LENGTH) for one in trials}) > 1:
        keys = (*keys, LENGTH)
    ranking = rank(replace(sweep, trials=trials, tuning=()))
    if not ranking.of_samples:  # the x0-error is of no length, and a draw may have no samples
        keys, ranking = tuple(sweep.space), rank(replace(sweep, trials=sweep.tuning, tuning=()))
    every = [*ranking.standings, *ranking.set_apart]
    found = Tuning(keys=keys, ranking=ranking, cells=())

    def place(draw: Standing) -> list[float]:
        return [float(draw.cell[key]) for key in keys]  # type: ignore[arg-type]

    cells = []
    for draws in grouped(every, lambda one: str(_grid_cell(one, sweep))).values():
        learned = [one for one in draws if one in ranking.standings] or draws
        best = min(learned, key=found.order)
        draws.sort(key=place)
        ends = [(min(k), max(k)) for k in zip(*map(place, draws), strict=True)]
        at_edge = any(one in some for one, some in zip(place(best), ends, strict=True))
        cell = _grid_cell(best, sweep)
        cells.append(TunedCell(cell=cell, draws=tuple(draws), best=best, is_at_edge=at_edge))
    return replace(found, cells=tuple(cells))


def _by_length(trial: TrialResult) -> list[TrialResult]:
    """A training as one for each length of the averages that its samples were drawn by."""
    points = () if trial.quality is None else trial.quality.points
    lengths = dict.fromkeys(p.ema_length for p in points if p.ema_length is not None)
    if trial.quality is None or not lengths:
        return [trial]
    return [
        replace(
            trial,
            cell={**trial.cell, LENGTH: length},
            quality=replace(
                trial.quality,
                points=tuple(p for p in points if p.ema_length == length),
                identity={**trial.quality.identity, "EMA_LENGTHS": [length]},
            ),
        )
        for length in lengths
    ]


def chosen_within(sweep: SweepResults) -> list[dict[str, dict[str, Value]]]:
    """For each cell of GRID the numbers of SPACE that its comparison is trained with."""
    found = tuning_of(sweep)
    if found is None:
        return []
    chosen = [(one, found.values(one.best)) for one in found.cells]
    return [
        # one length is a list of one, as the key has it
        {"cell": dict(one.cell), "chosen": {k: [v] if k == LENGTH else v for k, v in some.items()}}
        for one, some in chosen
    ]


def _grid_cell(standing: Standing, sweep: SweepResults) -> dict[str, Value]:
    return {k: v for k, v in standing.cell.items() if k not in sweep.space and k != LENGTH}
