"""Sweeps drawn from known effects, and how often the report's intervals hold on them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.metrics.intervals import Interval, t_quantile
from ddpm.report.effects import analyse
from ddpm.report.ranking import Ranking, against, rank
from ddpm.report.scatter import rounded, spread, tukey_quantile
from ddpm.report.verdict import Conclusion, judge, sentences
from tests.support.known_sweeps import (
    GRID_9,
    PRED_TYPE,
    SCHEDULER,
    cells_of,
    error_of,
    known_sweep,
    sampled_sweep,
    sweep_of,
    trial_of,
)

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
    measure, standings = X0_MEASURES[0], ranking.standings
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
    analysis = analyse(ranking, X0_MEASURES[0])
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
            "answer": verdict.kind != "tied" or len(ranking.tied) < len(ranking.standings),
            "table": any(row.outcome in ("higher", "lower") for row in rows),
            "factors": any("beats" in one for one in sentences(analyse(ranking, X0_MEASURES[0]))),
        }


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What is true of the samples of nine cells, in standard deviations over seeds.

    best: the cells that are lower, by `kid` and by `fid`.  noisy: by how much cells of one level of
    the second factor scatter more than the others.
    """

    best: tuple[int, ...] = (4,)
    kid: float = 0.0
    fid: float = 0.0
    seeds: int = 3
    noisy: float = 1.0
    scale: float = 0.01

    def draw(self, rng: np.random.Generator) -> tuple[Ranking, Conclusion]:
        """A sweep of samples, ranked and judged."""
        cells = cells_of(GRID_9)
        noisy = np.array([cell[PRED_TYPE] == "noise" for cell in cells])
        parts = self.scale * rng.normal(size=(2, 9, self.seeds))
        parts *= np.where(noisy, self.noisy, 1.0)[:, None]
        parts[:, self.best] -= self.scale * np.array([self.kid, self.fid])[:, None, None]
        sweep = sampled_sweep(parts[0], parts[1], cells)
        ranking = rank(sweep)
        return ranking, judge(sweep, ranking)


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Shares of sweeps by their verdict. false: a winner that is not the one best cell."""

    found: float
    false: float
    disagree: float
    tied: float
    undecided: float


def verdicts(edge: Edge, sweeps: int, seed: int = 0) -> Verdicts:
    """The verdicts on so many sweeps."""
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("found", "false", "disagree", "tied", "undecided"), 0)
    cells = cells_of(GRID_9)
    has_best = len(edge.best) == 1 and (edge.kid, edge.fid) != (0, 0)
    for _ in range(sweeps):
        ranking, verdict = edge.draw(rng)
        if verdict.kind == "winner":
            assert ranking.winner is not None
            is_right = has_best and dict(ranking.winner.cell) == cells[edge.best[0]]
            counts["found" if is_right else "false"] += 1
        else:
            counts[verdict.kind] += 1
    return Verdicts(**{name: count / sweeps for name, count in counts.items()})


@dataclass(frozen=True, kw_only=True)
class Unequal:
    """Nine cells of a 3 x 3 grid, those with one level of a factor `times` as wide as the others.

    of_seeds: what a seed does to all.  of_levels: what it does to a level, in its own deviations.
    """

    times: float
    seeds: int = 3
    of_seeds: float = 1.0
    of_levels: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OfPairs:
    """Shares of single 95 % intervals that hold the truth, by the cells compared.

    all: of sweeps in which all pairs hold together (Tukey).  wide: median width of the intervals of
    two quiet cells among all pairs over what it would be, were their scatter alone pooled.  seen:
    of sweeps in which the groups are told apart.
    """

    noisy: float
    mixed: float
    quiet: float
    all: float
    wide: float
    seen: float


def coverage_by_scatter(world: Unequal, sweeps: int, seed: int = 0) -> OfPairs:
    """How often intervals hold where one level scatters more."""
    rng = np.random.default_rng(seed)
    codes = np.array(list(product(range(3), range(3))))
    deviations = np.where(codes[:, 1] == 0, world.times, 1.0)[:, None]
    right = tukey_quantile(0.95, 9, 5.0 * (world.seeds - 1)) * np.sqrt(2 / world.seeds)
    holds: dict[str, list[bool]] = {"noisy": [], "mixed": [], "quiet": []}
    together, widths, seen = [], [], []
    for _ in range(sweeps):
        values = (
            rng.normal(size=(9, world.seeds))
            + world.of_levels * rng.normal(size=(3, world.seeds))[codes[:, 1]]
        )
        found = spread(
            deviations * values + world.of_seeds * rng.normal(size=world.seeds), codes=codes
        )
        assert found is not None
        seen.append(found.groups is not None and found.groups.is_certain)
        every = True
        for a, b in combinations(range(9), 2):
            one = found.difference(a, b)
            kind = ("quiet", "mixed", "noisy")[int(codes[a, 1] == 0) + int(codes[b, 1] == 0)]
            single = t_quantile(0.95, max(int(one.dof), 1)) * one.error
            holds[kind].append(abs(one.mean) <= single)
            width = tukey_quantile(0.95, 9, rounded(one.dof)) * one.error
            every = every and abs(one.mean) <= width
            if kind == "quiet":
                widths.append(width)
        together.append(every)
    return OfPairs(
        **{kind: float(np.mean(some)) for kind, some in holds.items()},
        all=float(np.mean(together)),
        wide=float(np.median(widths) / right),
        seen=float(np.mean(seen)),
    )


def any_sweep(rng: np.random.Generator) -> tuple[Ranking, Conclusion]:
    """A sweep of any kind: of samples or x0-errors, 1 to 5 seeds, equal cells or not, measures that
    agree, know nothing of each other or disagree, scatter that is equal or not, trials missing.
    """
    grid = (GRID_9, {SCHEDULER: ["linear", "cosine", "cos6", "sigmoid"]})[rng.integers(2)]
    cells, seeds = cells_of(grid), int(rng.integers(1, 6))
    shape = (len(cells), seeds)
    truth = rng.choice([0.0, 0.0, 3.0, 10.0]) * rng.normal(size=len(cells))
    alike = rng.choice([1.0, 0.0, -1.0])
    wide = np.where(rng.random(len(cells)) < 0.3, rng.choice([1.0, 1.0, 5.0, 20.0]), 1.0)
    shared = rng.choice([0.0, 1.0]) * rng.normal(size=(2, 1, seeds))
    parts = rng.normal(size=(2, *shape)) * wide[:, None] + shared
    parts += np.stack([truth, alike * truth])[:, :, None]
    first, second = 0.01 * parts
    if rng.random() < 0.5:
        high = 10 ** float(np.quantile(first, 0.2))
        floor = Interval(value=high / 2, low=0.0, high=high, n=180)
        sweep = sampled_sweep(first, second, cells, real={"kid": floor} if high < 1 else None)
    else:
        pairs = rng.gamma(4, 1 / 4, (3, 12))
        there = rng.random(shape) >= rng.choice([0.0, 0.2])
        there[:, 0] = True
        sweep = sweep_of(
            [
                trial_of(
                    cells[c],
                    int(s),
                    error_of(first[c, s], second[c, s], pairs * rng.normal(1, 0.02, pairs.shape)),
                )
                for c, s in zip(*np.nonzero(there), strict=True)
            ]
        )
    ranking = rank(sweep)
    return ranking, judge(sweep, ranking)
