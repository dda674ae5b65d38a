"""Sweeps drawn from known effects, and how often the report's intervals hold on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ddpm.metrics.intervals import t_quantile
from ddpm.metrics.x0_error import MEASURES
from ddpm.report.effects import analyse
from ddpm.report.ranking import Ranking, against, rank
from ddpm.report.verdict import Conclusion, judge, sentences
from tests.support.known_sweeps import cells_of, known_sweep

NAMES = {"NAME": list("abcdefghi")}


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true of the sweeps to draw. All in units of what a trial scatters by itself.

    of_seeds: what a seed does to all its cells.  of_factors: what it does to all cells with one
    level of the first factor, and more so of the second.  of_cells: how far cells differ in truth.
    wild: by how much the first cell scatters more than the others.
    """

    grid: Mapping[str, list]
    seeds: int = 3
    of_seeds: float = 0.0
    of_factors: float = 0.0
    of_cells: float = 0.0
    wild: float = 1.0
    missing: float = 0.0
    own_seeds: bool = False
    scale: float = 0.01

    def draw(self, rng: np.random.Generator) -> tuple[Ranking, Conclusion, np.ndarray]:
        """A sweep, ranked and judged, and the true numbers of its standings."""
        cells = cells_of(self.grid)
        count = len(cells)
        truth = self.scale * self.of_cells * rng.normal(size=count)
        parts = [
            self.scale * self._scatter(rng, [len(v) for v in self.grid.values()]) for _ in range(2)
        ]
        values = truth[:, None] + parts[0]
        if self.missing:
            gone = rng.random(values.shape) < self.missing
            gone[:, 0] = False
            values = np.where(gone, np.nan, values)
        own = np.arange(count * self.seeds).reshape(count, self.seeds) if self.own_seeds else None
        sweep = known_sweep(values, cells, clean=parts[1], seeds=own)
        ranking = rank(sweep)
        places = [cells.index(dict(standing.cell)) for standing in ranking.standings]
        return ranking, judge(sweep, ranking), truth[places]

    def _scatter(self, rng: np.random.Generator, levels: list[int]) -> np.ndarray:
        count = int(np.prod(levels))
        scatter = rng.normal(size=(count, self.seeds))
        scatter[0] *= self.wild
        scatter += self.of_seeds * rng.normal(size=self.seeds)
        for axis in range(min(len(levels), 2)):
            shape = [1] * len(levels)
            shape[axis] = levels[axis]
            common = self.of_factors * (1 + axis) * rng.normal(size=(*shape, self.seeds))
            scatter += np.broadcast_to(common, (*levels, self.seeds)).reshape(count, self.seeds)
        return scatter


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of sweeps, or of their intervals, that hold."""

    one: float  # 95 % intervals of single differences of cells
    pairs: float  # sweeps in which all differences of cells hold together
    baseline: float  # sweeps in which all differences against one cell hold together
    cell: float  # 95 % intervals of single cells
    effect: float  # 95 % intervals of single effects of levels
    levels: float  # sweeps in which all differences of levels of all factors hold together
    paired: float  # sweeps that pair


def coverage(world: World, sweeps: int, seed: int = 0) -> Coverage:
    """How often the intervals of so many sweeps hold the truth."""
    rng = np.random.default_rng(seed)
    rows = [_held(*world.draw(rng)) for _ in range(sweeps)]
    return Coverage(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def _held(ranking: Ranking, _: Conclusion, truth: np.ndarray) -> dict[str, float]:
    measure, standings = MEASURES[0], ranking.standings
    found = ranking.spread(measure)
    assert found is not None
    one, together = [], True
    for a in range(len(standings)):
        for b in range(a):
            difference = found.difference(a, b)
            off = abs(difference.mean - (truth[a] - truth[b]))
            one.append(off <= t_quantile(0.95, max(int(difference.dof), 1)) * difference.error)
            width = ranking.gap(standings[a], standings[b], measure).half_width
            together = together and off <= width
    base = next(place for place, one in enumerate(standings) if one.cell == _first(ranking))
    against_one = True
    for place in set(range(len(standings))) - {base}:
        found_gap = ranking.gap(standings[place], standings[base], measure, "baseline")
        off = abs(found_gap.mean - (truth[place] - truth[base]))
        against_one = against_one and off <= found_gap.half_width
    cells = [
        abs(s.value(measure) - t) <= s.error(measure) for s, t in zip(standings, truth, strict=True)
    ]
    effects, levels = _effects(ranking, truth)
    return {
        "one": float(np.mean(one)),
        "pairs": together,
        "baseline": against_one,
        "cell": float(np.mean(cells)),
        "effect": effects,
        "levels": levels,
        "paired": found.is_paired,
    }


def _first(ranking: Ranking) -> dict[str, object]:
    """A cell that does not depend on what was measured."""
    return dict(min((s.cell for s in ranking.standings), key=str))


def _effects(ranking: Ranking, truth: np.ndarray) -> tuple[float, float]:
    analysis = analyse(ranking, MEASURES[0])
    single, together = [], []
    for key in analysis.factors:
        effect = analysis.effect(key)
        means = np.array(
            [
                truth[[s.cell[key] == level for s in ranking.standings]].mean()
                for level in effect.levels
            ]
        )
        single += list(np.abs(effect.means - (means - means.mean())) <= effect.half_widths)
        off = np.abs(effect.differences - (means[:, None] - means))
        together.append(bool((off <= effect.widths + 1e-12).all()))
    return float(np.mean(single)), float(all(together))


@dataclass(frozen=True, kw_only=True)
class Claims:
    """Shares of sweeps of equal cells in which something is said to differ."""

    answer: float  # the headline: anything but that no cell can be told from the lowest
    table: float  # a row of the table against the recommended cell
    factors: float  # a sentence on a factor, by the first measure


def claims(world: World, sweeps: int, seed: int = 0) -> Claims:
    """How often the report tells apart what is the same."""
    rng = np.random.default_rng(seed)
    rows = list(_said(world, sweeps, rng))
    return Claims(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})


def _said(world: World, sweeps: int, rng: np.random.Generator) -> Iterator[dict[str, bool]]:
    for _ in range(sweeps):
        ranking, verdict, _ = world.draw(rng)
        rows = against(ranking, ranking.standings[0], "pairs")
        yield {
            "answer": verdict.kind != "level" or len(ranking.level) < len(ranking.standings),
            "table": any(row.outcome in ("higher", "lower") for row in rows),
            "factors": any("beats" in one for one in sentences(analyse(ranking, MEASURES[0]))),
        }
