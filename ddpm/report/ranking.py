"""The cells of a sweep in order, by the measures that make its headline.

A cell is one point of the grid; its trials differ in their seed alone. The headline is of samples:
KID and FID extrapolated to infinitely many samples, of images that all networks drew by one solver
in the most network calls that all cells share. Without samples it is the x0-error by both of its
measures. Every number is compared as log10, lower is better.

The x0-error is averaged over one window of log SNR, fixed by the data before anything is trained,
so that no cell changes another's number. A cell that does not reach all of it has no such number.

Differences between cells are over seeds where a cell has two (see `scatter.spread`), corrected by
family, over all measures of the headline together (Bonferroni):

    pairs     all pairs of cells at once (Tukey): whatever is compared after looking, so also
              everything against the best cell, which the data have picked
    baseline  every cell against one named beforehand (Dunnett)

With one seed they are of evaluation error, over (image, noise) pairs or over samples, which
supports a statement about the trained networks only.

A cell wins that no other beats by any measure and that beats every other by at least one. Cells are
tied that no measure tells from its lowest; of them the cheapest is recommended.

A cell has learned where its x0-error is below that of the best linear estimate, the Gaussian fit to
the training data. Those that have not are set apart, never averaged into an effect.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf, isfinite, log, log10, nan, prod, sqrt
from pathlib import Path
from typing import Literal

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.errors import InputError
from ddpm.metrics import (
    RESOLVED_SHARES,
    Interval,
    QualityPoint,
    X0Error,
    common_levels,
    mean_interval,
    x0_influence,
    x0_summary,
)
from ddpm.report.costs import ALIKE, Cost, cheapest, compute_seconds, cost
from ddpm.report.labels import SWEEP, TIMESTEPS, TITLES, cell_label, listed, ranges, text, varied
from ddpm.report.reading import SweepResults, TrialResult, Value, code, grouped, number, sequence
from ddpm.report.scatter import (
    Difference,
    Spread,
    dunnett_quantile,
    rounded,
    spread,
    tukey_quantile,
)
from ddpm.sweep import IMAGE_KEYS

OF_SAMPLES = ("kid", "fid")
# Of a grid's combinations; with fewer, what each key does cannot be separated.
_LEAST_FILLED = 0.5
CONFIDENCE = 0.95
# Keys in which sweeps may differ without another number.
_OWN = re.compile(r"TRAINING\.(SEED|OUTPUT_DIR)|WANDB\.|CLUSTER\.|DATASET\.(PATH|STAGE|CACHE)")


@dataclass(frozen=True, kw_only=True)
class Number:
    """One measure of one trained network, and its evaluation error, a standard error."""

    value: float
    error: float
    is_log10: bool = False

    @property
    def is_resolved(self) -> bool:
        """True where it lies above its own evaluation error."""
        return self.is_log10 or self.value > self.error

    @property
    def log10(self) -> float:
        """As it is compared. What samples do not resolve, as a negative KID, counts as its error.

        Its own error, since that of others would let one cell change another's number.
        """
        return self.value if self.is_log10 else log10(max(self.value, self.error, 1e-300))

    @property
    def log10_error(self) -> float:
        """The error of `log10`, to first order."""
        return self.error if self.is_log10 else self.error / (10**self.log10 * log(10))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One cell that can be ranked: its trials by seed, and their numbers by measure and seed."""

    cell: Mapping[str, Value]
    label: str
    trials: Mapping[int, TrialResult]
    numbers: Mapping[str, Mapping[int, Number]]
    levels: tuple[int, ...] = ()  # of log SNR, at which all its trials were evaluated
    calls: float = nan  # network calls an image, of the samples compared, else its timesteps

    @property
    def key(self) -> str:
        """The cell as TrialResult.key has it."""
        return code(self.cell)

    def code(self, key: str) -> str:
        """Its value of a key as text that can be compared."""
        return code(self.cell.get(key))

    def has(self, measure: str) -> bool:
        """True where every one of its trials has such a number."""
        return len(self.numbers[measure]) == len(self.trials)

    def is_resolved(self, measure: str) -> bool:
        """True where the number of any seed lies above its own evaluation error."""
        return any(one.is_resolved for one in self.numbers[measure].values())

    def value(self, measure: str) -> float:
        """The number, mean over seeds."""
        return float(np.mean([one.value for one in self.numbers[measure].values()]))

    def log10(self, measure: str) -> float:
        """The number as it is compared, mean over seeds."""
        return float(np.mean([one.log10 for one in self.numbers[measure].values()]))

    def error(self, measure: str) -> float:
        """95 % half-width over seeds; for one seed the evaluation error."""
        found = list(self.numbers[measure].values())
        return mean_interval([one.value for one in found])[1] if len(found) > 1 else found[0].error

    def curve(self, levels: Sequence[int]) -> np.ndarray:
        """MSE of the x0 estimate at these levels, mean over pairs and seeds."""
        return np.mean([_error(t).at(levels).mean(axis=1) for t in self.trials.values()], axis=0)

    @property
    def num_pairs(self) -> int:
        """Validation images it was evaluated on."""
        return len(_error(next(iter(self.trials.values()))).ids)

    @cached_property
    def cost(self) -> Cost:
        """The cost of its trainings."""
        return cost(self.trials.values())

    @property
    def costs(self) -> list[float]:
        """Core- or GPU-seconds of its trainings, of those of which they are known."""
        return list(filter(None, map(compute_seconds, self.trials.values())))

    @property
    def seconds(self) -> float | None:
        """Core- or GPU-seconds of a training, mean over seeds; None where they are not known."""
        return self.cost.compute_seconds


Family = Literal["pairs", "baseline"]
Basis = Literal["paired", "unpaired", "evaluation", "none"]


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One cell's number minus another's, in log10, with its interval.

    basis: paired or unpaired over seeds; evaluation: one seed, over pairs or samples; none: no
    interval.
    """

    mean: float = 0.0
    half_width: float = inf
    basis: Basis = "none"

    @property
    def sign(self) -> int:
        """1 where the interval lies above zero, -1 below, 0 where it contains zero."""
        return (1 if self.mean > 0 else -1) if abs(self.mean) > self.half_width else 0


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The cells in order of the first measure, what they share, and what could not be ranked.

    measures: those of the headline, one that is not informative last.  levels: the window of log
    SNR.  is_window: whether it was fixed by the data; else it is what all cells share.  point: how
    the samples were drawn.
    real: by measure, the number of held-out real images, measured as the samples are.
    failed: (cell, its mean log10 x0-error above the Gaussian fit's), of cells that learned nothing.
    """

    levels: tuple[int, ...]
    standings: tuple[Standing, ...]
    excluded: tuple[tuple[str, str], ...]  # (cell, reason)
    measures: tuple[str, ...] = X0_MEASURES
    is_window: bool = False
    point: QualityPoint | None = None
    num_samples: int = 0
    real: Mapping[str, Interval] = field(default_factory=dict)
    failed: tuple[tuple[Standing, float], ...] = ()
    too_few_learned: bool = False  # fewer than two: those that learned nothing are ranked too
    problem: str | None = None  # why the cells cannot be compared at all
    baseline: int | None = None  # the place of a cell that others are compared with beforehand
    confidence: float = CONFIDENCE

    @cached_property
    def informative(self) -> tuple[str, ...]:
        """The measures by which any cell's number lies above its own evaluation error."""
        return tuple(m for m in self.measures if any(one.is_resolved(m) for one in self.standings))

    def rank(self, place: int, measure: str) -> int | None:
        """1 for the lowest; None by a measure that tells nothing."""
        return 1 + self.orders[measure].index(place) if measure in self.informative else None

    def lowest(self, measure: str) -> Standing:
        """The cell with the lowest number."""
        return self.standings[self.orders[measure][0]]

    @property
    def set_apart(self) -> tuple[Standing, ...]:
        """The cells that learned nothing while others did, and so are not ranked."""
        return () if self.too_few_learned else tuple(standing for standing, _ in self.failed)

    @property
    def of_samples(self) -> bool:
        """True where samples are compared, not the x0-error."""
        return self.measures != X0_MEASURES

    def estimate(self, standing: Standing, measure: str) -> float:
        """The number that is compared: where trials are missing, least squares on cells and seeds.

        A cell that lacks a bad seed is so no better for it.
        """
        found = self.spread(measure)
        if (
            found is None
            or np.isfinite(found.values).all()
            or not found.is_paired
            or len(set(found.links.tolist())) > 1
        ):
            return standing.log10(measure)
        return float(found.means[self.place(standing)])

    @cached_property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """Places in `standings` by each measure, from the lowest up."""

        def key(place: int, measure: str) -> tuple[float, float]:
            standing = self.standings[place]
            return self.estimate(standing, measure), standing.value(measure)

        places = range(len(self.standings))
        return {m: tuple(sorted(places, key=lambda place: key(place, m))) for m in self.measures}

    @property
    def num_seeds(self) -> int:
        """Seeds the cell with the fewest has."""
        return min((len(standing.trials) for standing in self.standings), default=0)

    @property
    def seeds(self) -> list[int]:
        """All seeds that a ranked cell has."""
        return sorted({seed for standing in self.standings for seed in standing.trials})

    def place(self, standing: Standing) -> int:
        """Its place in `standings`."""
        return self._places[id(standing)]

    def table(self, measure: str) -> np.ndarray:
        """The numbers that are compared, (cells, seeds), NaN where a trial is missing."""
        rows = [standing.numbers[measure] for standing in self.standings]
        return np.array([[r[k].log10 if k in r else nan for k in self.seeds] for r in rows])

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """The keys in which its cells differ; none where they are no grid but scattered points."""
        keys = varied(standing.cell for standing in self.standings)
        return keys if self.filled(keys) >= _LEAST_FILLED else ()

    def filled(self, keys: Sequence[str]) -> float:
        """The share of all combinations of these keys' values that is ranked."""
        levels = [len({standing.code(key) for standing in self.standings}) for key in keys]
        return len(self.standings) / prod(levels)

    @cached_property
    def codes(self) -> np.ndarray:
        """The number of each cell's level of each factor, (cells, factors)."""
        columns = [[standing.code(key) for standing in self.standings] for key in self.factors]
        numbers = [np.unique(column, return_inverse=True)[1].ravel() for column in columns]
        return np.array(numbers, dtype=np.int64).reshape(len(columns), len(self.standings)).T

    def spread(self, measure: str) -> Spread | None:
        """Scatter of the cells over seeds; None where no cell has two."""
        return self._spreads[measure]

    def gap(self, worse: Standing, better: Standing, measure: str, family: Family = "pairs") -> Gap:
        """worse - better of one number; intervals of the family, over all measures, hold together.

        In the family "baseline", `better` is the baseline.
        """
        confidence = 1 - (1 - self.confidence) / len(self.measures)
        if not worse.is_resolved(measure) and not better.is_resolved(measure):
            # Both count as their evaluation errors, and the ratio of those says nothing.
            return Gap()
        if (found := self.spread(measure)) is not None:
            return self._over_seeds(found, worse, better, confidence, family)
        seeds = sorted(worse.numbers[measure].keys() & better.numbers[measure].keys())
        mean = worse.log10(measure) - better.log10(measure)
        if not seeds:
            return Gap(mean=mean)
        if measure in X0_MEASURES:
            pairs = [_influences(one, seeds[0], measure, self.levels) for one in (worse, better)]
            return self._over_pairs(mean, pairs[0] - pairs[1], confidence, family)
        errors = [one.numbers[measure][seeds[0]].log10_error for one in (worse, better)]
        width = self._quantile(confidence, inf, self._no_loads(family)) * sqrt(
            sum(np.square(errors))
        )
        return Gap(mean=mean, half_width=width, basis="evaluation")

    def level_gap(self, a: Standing, b: Standing, level: int) -> Gap:
        """a - b of log10 MSE at a level of log SNR, for all pairs of cells and levels together."""
        confidence = 1 - (1 - CONFIDENCE) / max(len(self.levels), 1)
        overall = self.spread(self.measures[0])
        if overall is not None:
            rows = [
                [_log_mse(one, seed, level) if seed in one.trials else nan for seed in self.seeds]
                for one in self.standings
            ]
            found = spread(np.array(rows), codes=self.codes, is_paired=overall.is_paired)
            assert found is not None  # the same trials scatter at every level
            return self._over_seeds(found, a, b, confidence, "pairs")
        seeds = shared_seeds((a, b))
        if not seeds:
            return Gap()
        mean = _log_mse(a, seeds[0], level) - _log_mse(b, seeds[0], level)
        pairs = [x0_influence(_error(one.trials[seeds[0]]), [level])[0] for one in (a, b)]
        return self._over_pairs(mean, pairs[0] - pairs[1], confidence, "pairs")

    @cached_property
    def signs(self) -> Mapping[str, np.ndarray]:
        """By each measure (C, C): the sign of the gap of the row's cell and the column's."""
        count = len(self.standings)
        found = {measure: np.zeros((count, count), dtype=np.int64) for measure in self.measures}
        for measure, signs in found.items():
            for a, one in enumerate(self.standings):
                for b in range(a):
                    signs[a, b] = self.gap(one, self.standings[b], measure).sign
            signs -= signs.T
        return found

    @cached_property
    def winner(self) -> Standing | None:
        """The cell that none beats by any measure and that beats each other by at least one."""
        signs = np.stack(list(self.signs.values()))
        beats = (signs <= 0).all(axis=0) & (signs < 0).any(axis=0)
        wins = beats | np.eye(len(self.standings), dtype=bool)
        places = np.flatnonzero(wins.all(axis=1))
        return self.standings[places[0]] if len(self.standings) > 1 and len(places) else None

    @cached_property
    def tied(self) -> tuple[Standing, ...]:
        """The cells that no measure tells from its lowest, in the order of the ranking."""
        rows = [self.signs[m][self.orders[m][0]] for m in self.measures]
        return tuple(one for k, one in enumerate(self.standings) if not any(row[k] for row in rows))

    @cached_property
    def recommended(self) -> Standing | None:
        """The winner, else of the tied cells the cheapest: to train, then to draw from,
        then the one with the least `loss`. What may be the machine's load counts as no cost.
        """
        if not self.standings or self.problem:
            return None
        if self.winner is not None:
            return self.winner
        left = list(self.tied) or [self.lowest(measure) for measure in self.measures]
        if all(one.costs for one in left):
            left = [left[k] for k in cheapest([one.costs for one in left], CONFIDENCE)]
        if all(isfinite(one.calls) for one in left):
            fewest = min(one.calls for one in left)
            left = [one for one in left if one.calls <= ALIKE * fewest]
        return min(left, key=self.loss)

    def is_cheaper(self, one: Standing, other: Standing) -> bool:
        """Whether training `one` costs less than `other`, beyond what a machine's load may do."""
        known = [one.costs, other.costs]
        return all(known) and cheapest(known, CONFIDENCE) == [0]

    def like_real(self, measure: str) -> tuple[Standing, ...]:
        """The cells whose samples are as near to the training images as real ones may be."""
        if measure not in self.real:
            return ()
        high = self.real[measure].high
        return tuple(one for one in self.standings if one.value(measure) <= high)

    def loss(self, standing: Standing) -> float:
        """Distance of a cell above the lowest, log10, by the measure by which it is the most."""
        return max(
            (
                self.estimate(standing, m) - self.estimate(self.lowest(m), m)
                for m in self.informative
            ),
            default=0.0,
        )

    def _over_seeds(
        self, found: Spread, a: Standing, b: Standing, confidence: float, family: Family
    ) -> Gap:
        difference = found.difference(self.place(a), self.place(b))
        if not isfinite(difference.error):
            return Gap(mean=difference.mean)
        loads = self._loads(b, difference) if family == "baseline" else ()
        return Gap(
            mean=difference.mean,
            half_width=self._quantile(confidence, difference.dof, loads) * difference.error,
            basis="paired" if found.is_paired else "unpaired",
        )

    def _over_pairs(
        self, mean: float, differences: np.ndarray, confidence: float, family: Family
    ) -> Gap:
        count = len(differences)
        if count < 2:
            return Gap(mean=mean)
        error = float(differences.std(ddof=1)) / sqrt(count)
        width = self._quantile(confidence, float(count - 1), self._no_loads(family))
        return Gap(mean=mean, half_width=width * error, basis="evaluation")

    def _quantile(self, confidence: float, dof: float, loads: Sequence[float]) -> float:
        dof = rounded(dof) if isfinite(dof) else dof
        if loads:
            return dunnett_quantile(confidence, tuple(loads), dof)
        return tukey_quantile(confidence, max(len(self.standings), 2), dof)

    def _no_loads(self, family: Family) -> tuple[float, ...]:
        """Nothing is known of the correlations of such comparisons: Sidak's quantile needs none."""
        return (0.0,) * (len(self.standings) - 1) if family == "baseline" else ()

    def _loads(self, baseline: Standing, difference: Difference) -> tuple[float, ...]:
        """Square roots of the correlations of comparisons that share the baseline."""
        others = [one for one in self.standings if one is not baseline]
        if difference.is_own:
            return (0.0,) * len(others)
        base = len(baseline.trials)
        return tuple(sqrt(len(one.trials) / (len(one.trials) + base)) for one in others)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {id(standing): place for place, standing in enumerate(self.standings)}

    @cached_property
    def _spreads(self) -> dict[str, Spread | None]:
        if not self.standings:
            return dict.fromkeys(self.measures)
        sweeps = {str(standing.cell.get(SWEEP)) for standing in self.standings}
        is_paired = False if len(sweeps) > 1 else None  # a seed of one sweep is none of another's
        return {
            measure: spread(self.table(measure), codes=self.codes, is_paired=is_paired)
            for measure in self.measures
        }


def rank(
    sweep: SweepResults, *, at: QualityPoint | None = None, confidence: float = CONFIDENCE
) -> Ranking:
    """Ranks a sweep's cells; what cannot be compared is excluded with its reason.

    at: how the samples compared were drawn, one of shared_points(); None is the headline's.
    """
    keys = varied(sweep.cells)
    usable: list[tuple[str, list[TrialResult]]] = []
    excluded: list[tuple[str, str]] = []
    for trials in grouped(sweep.trials, lambda trial: trial.key).values():
        label = cell_label(trials[0].cell, keys)
        reasons = {id(trial): _why_not(trial, sweep.is_sweep) for trial in trials}
        good = [trial for trial in trials if reasons[id(trial)] is None]
        if good:
            usable.append((label, good))
        excluded += [(label, reason) for reason in sorted(filter(None, reasons.values()))]
    excluded += _untuned(sweep, keys)
    every = [trial for _, trials in usable for trial in trials]
    common = common_levels(_error(trial).levels for trial in every)
    window = window_of(sweep)
    levels = window or common
    problem = _not_comparable(every)
    if usable and not levels:
        problem = problem or "The cells share no noise level, so no number compares them."
    if problem or not usable:
        return Ranking(levels=levels, standings=(), excluded=tuple(excluded), problem=problem)
    point = at or (_headline_point(usable) if sweep.is_sweep else None)
    measures = X0_MEASURES if point is None else OF_SAMPLES
    place = _length_place(every)
    found = [_standing(label, trials, levels, point, place) for label, trials in usable]
    standings = [one for one in found if all(map(one.has, measures))]
    excluded += [(one.label, _lacking(one, point, levels)) for one in found if one not in standings]
    above = {id(one): _above_gaussian(sweep, one, levels) for one in standings}
    learned = [one for one in standings if above[id(one)] < 0]
    failed = [(one, above[id(one)]) for one in standings if above[id(one)] >= 0]
    too_few_learned = bool(failed) and len(learned) < 2
    if not too_few_learned:
        standings = learned
    measures = tuple(sorted(measures, key=lambda m: not any(s.is_resolved(m) for s in standings)))
    ranking = Ranking(
        levels=levels,
        standings=tuple(standings),
        excluded=tuple(excluded),
        measures=measures,
        is_window=bool(window),
        point=point,
        num_samples=max((t.quality.num for t in every if t.quality is not None), default=0),
        real=next((t.quality.real for t in every if point and t.quality and t.quality.real), {}),
        failed=tuple(failed),
        too_few_learned=too_few_learned,
        confidence=confidence,
        problem=None if standings else "No cell has every number that is compared.",
    )
    order = ranking.orders[measures[0]] if standings else ()
    return replace(ranking, standings=tuple(standings[place] for place in order))


def _untuned(sweep: SweepResults, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Cells that are not compared since nothing could be chosen within them."""
    compared = {trial.key for trial in sweep.trials}
    cells = {}
    for trial in sweep.tuning if sweep.trials else ():
        cell = {key: value for key, value in trial.cell.items() if key not in sweep.space}
        cells[code(cell)] = cell
    why = "no training that would choose within it has finished"
    return [(cell_label(cell, keys), why) for key, cell in cells.items() if key not in compared]


def window_of(sweep: SweepResults) -> tuple[int, ...]:
    """The levels of log SNR at which there is something to learn, fixed by the data.

    Those at which the best linear estimate resolves 1 to 99 % of the data's variance: written into
    sweep.json before the first trial, else read off the sweep's Gaussian line; () without either.
    """
    if sweep.window is not None:
        return tuple(range(sweep.window[0], sweep.window[1] + 1))
    lines = sweep.references
    if lines is None or lines.gaussian is None or not max(lines.gaussian) > 0:
        return ()
    shares = 1 - np.array(lines.gaussian) / max(lines.gaussian)
    inside = (shares >= RESOLVED_SHARES[0]) & (shares <= RESOLVED_SHARES[1])
    return tuple(level for level, one in zip(lines.levels, inside, strict=True) if one)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A cell minus the one it is compared with, by every measure of the headline.

    ratios: paired over unpaired variance from the seeds the two share, NaN where they share none.
    """

    standing: Standing
    gaps: Mapping[str, Gap]
    ratios: Mapping[str, float]

    @property
    def outcome(self) -> Literal["higher", "lower", "mixed", "tied"]:
        """higher or lower: by at least one measure, beyond its interval, and by none the other way.

        mixed: one way by one and the other way by another.
        """
        signs = {one.sign for one in self.gaps.values()} - {0}
        if not signs:
            return "tied"
        return "mixed" if len(signs) == 2 else "higher" if signs == {1} else "lower"


def against(ranking: Ranking, reference: Standing, family: Family) -> tuple[Comparison, ...]:
    """All other cells minus the reference, in the order of the ranking."""
    return tuple(
        Comparison(
            standing=one,
            gaps={m: ranking.gap(one, reference, m, family) for m in ranking.measures},
            ratios={m: _ratio(ranking, one, reference, m) for m in ranking.measures},
        )
        for one in ranking.standings
        if one is not reference
    )


def agreement(ranking: Ranking) -> tuple[float, float, float, int] | None:
    """Kendall's tau of the x0-error's order of the cells and FID's, its 95 % interval, and cells.

    By Fisher's transformation with variance 0.437 / (n - 4)      (Fieller, Hartley & Pearson 1957)

    NaN ends for fewer than five cells; None without samples.
    """
    both = [s for s in ranking.standings if s.has(X0_MEASURES[0]) and s.has(OF_SAMPLES[1])]
    if not ranking.of_samples or len(both) < 3:
        return None
    a, b = (np.array([s.log10(m) for s in both]) for m in (X0_MEASURES[0], OF_SAMPLES[1]))
    tau, count = kendall_tau(a, b), len(both)
    if count < 5 or abs(tau) == 1:
        return tau, nan, nan, count
    width = 1.96 * sqrt(0.437 / (count - 4))
    low, high = (float(np.tanh(np.arctanh(tau) + end)) for end in (-width, width))
    return tau, low, high, count


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Pairs in the same order less those in opposite order, as a share of all (Kendall 1938)."""
    signs = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    return float(signs.sum() / (len(a) * (len(a) - 1)))


def _ratio(ranking: Ranking, a: Standing, b: Standing, measure: str) -> float:
    found = ranking.spread(measure)
    return nan if found is None else found.ratio_of(ranking.place(a), ranking.place(b))


def _influences(standing: Standing, seed: int, measure: str, levels: Sequence[int]) -> np.ndarray:
    """Contribution of each pair to log10 of a measure, to first order, (N,)."""
    found = x0_influence(_error(standing.trials[seed]), levels)[X0_MEASURES.index(measure)]
    if measure == X0_MEASURES[0]:
        return found
    # To first order, the logarithm of a mean is the mean over itself.
    return found / (standing.numbers[measure][seed].value * log(10))


def _log_mse(standing: Standing, seed: int, level: int) -> float:
    return float(np.log10(_error(standing.trials[seed]).at([level]).mean()))


def _error(trial: TrialResult) -> X0Error:
    assert trial.error is not None  # `rank` keeps evaluated trials only
    return trial.error


def shared_seeds(standings: Iterable[Standing]) -> list[int]:
    """The seeds all of these cells have."""
    sets = [set(standing.trials) for standing in standings]
    return sorted(set.intersection(*sets)) if sets else []


def shared_points(cells: Sequence[Sequence[TrialResult]]) -> list[QualityPoint]:
    """The ways in which the cells with samples all drew some, a point of each.

    None where fewer than two cells have any, or their samples were not measured alike.
    """
    every = [trial for trials in cells for trial in trials if trial.quality is not None]
    if len({(t.quality.protocol, t.quality.num) for t in every if t.quality is not None}) != 1:
        return []
    place = _length_place(every)
    points = [[{_way(p): p for p in _points(t, place)} for t in some] for some in cells]
    ways = [set.intersection(*map(set, some)) for some in points]
    having = [some for some in ways if some]
    shared = set.intersection(*having) if len(having) > 1 else set()
    found = {way: p for some in points for t in some for way, p in t.items() if way in shared}
    return list(found.values())


def _headline_point(usable: Sequence[tuple[str, Sequence[TrialResult]]]) -> QualityPoint | None:
    """Of the shared points the one with the most calls; unguided where there is one."""
    found = shared_points([trials for _, trials in usable])
    return max(found, key=lambda p: (-abs(p.guidance - 1), p.evaluations, -p.eta), default=None)


def _length_place(trials: Sequence[TrialResult]) -> int:
    """The first place in EMA_LENGTHS of which all trials with samples have some; 0 without.

    A place, since TUNE.WITHIN gives each cell a length of its own.
    """
    having = [trial for trial in trials if trial.quality is not None and trial.quality.points]
    most = max((len(_lengths(trial)) for trial in having), default=0)
    return next((k for k in range(most) if all(_points(trial, k) for trial in having)), 0)


def _lengths(trial: TrialResult) -> list[Value]:
    """Those of the averages that its samples were to be drawn by, the first first."""
    if trial.quality is None:
        return []
    wanted = sequence(trial.quality.identity.get("EMA_LENGTHS"))
    return wanted or list(dict.fromkeys(point.ema_length for point in trial.quality.points))


def _points(trial: TrialResult, place: int) -> list[QualityPoint]:
    """Those that can be compared, of one place in EMA_LENGTHS."""
    points = () if trial.quality is None else trial.quality.points
    lengths = _lengths(trial)[place : place + 1]
    return [
        one
        for one in points
        if one.kid is not None and one.fid is not None and one.ema_length in lengths
    ]


def _way(point: QualityPoint) -> tuple[str, int, float, float, int]:
    return point.sampler, point.num_steps, point.eta, point.guidance, point.evaluations


def _standing(
    label: str,
    trials: Sequence[TrialResult],
    levels: Sequence[int],
    point: QualityPoint | None,
    place: int,
) -> Standing:
    own = common_levels(_error(trial).levels for trial in trials)
    numbers: dict[str, dict[int, Number]] = {measure: {} for measure in (*X0_MEASURES, *OF_SAMPLES)}
    for trial in trials:
        if set(levels) <= set(own):
            for measure, (value, error) in x0_summary(_error(trial), levels).items():
                numbers[measure][trial.seed] = Number(
                    value=value, error=error, is_log10=measure == X0_MEASURES[0]
                )
        same = [p for p in _points(trial, place) if point and _way(p) == _way(point)]
        for measure in OF_SAMPLES if same else ():
            one = same[0].interval(measure)
            assert one is not None  # of `_points`
            error = (one.high - one.low) / (2 * 1.96)
            numbers[measure][trial.seed] = Number(value=one.value, error=error)
    steps = number(trials[0].config.get(TIMESTEPS))
    return Standing(
        cell=trials[0].cell,
        label=label,
        trials={trial.seed: trial for trial in trials},
        numbers=numbers,
        levels=own,
        calls=steps if point is None else float(point.evaluations),
    )


def _lacking(standing: Standing, point: QualityPoint | None, levels: Sequence[int]) -> str:
    """The reason that a cell lacks a number that all are compared by."""
    if point is None:
        missing = [level for level in levels if level not in standing.levels]
        return f"does not reach log SNR {ranges(missing)}, a part of the data's window"
    reasons = [
        left.reason
        for trial in standing.trials.values()
        if trial.quality is not None
        for left in trial.quality.left_out
    ]
    why = f": {reasons[0]}" if reasons else ""
    return f"has no samples in {point.evaluations} network calls{why}"


def _above_gaussian(sweep: SweepResults, standing: Standing, levels: Sequence[int]) -> float:
    """Mean log10 of its x0-error over the Gaussian fit's, at the levels both have; -inf unknown."""
    lines = sweep.references
    if lines is None or lines.gaussian is None:
        return -np.inf
    line = dict(zip(lines.levels, lines.gaussian, strict=True))
    both = [one for one in levels if one in standing.levels and line.get(one, 0) > 0]
    if not both:
        return -np.inf
    return float(np.log10(standing.curve(both) / np.array([line[one] for one in both])).mean())


def _why_not(trial: TrialResult, must_be_done: bool) -> str | None:
    """The reason that a trial has no place in the ranking; None when it has."""
    if must_be_done and trial.status != "done":
        return f"seed {trial.seed} {trial.status}"
    if trial.error is None:
        return f"seed {trial.seed} has no evaluation.npz"
    if not np.isfinite(trial.error.mse).all():
        return f"seed {trial.seed} gives numbers that are not finite"
    if not (trial.error.mse.mean(axis=1) > 0).all():
        return f"seed {trial.seed} gives an error of zero, which has no logarithm"
    return None


def _not_comparable(trials: Sequence[TrialResult]) -> str | None:
    """The reason that trials cannot be compared; None when all were measured on the same pairs.

    The images are the same where data_sha256 and all that makes images of the data are.
    """
    data = {
        str(trial.evaluation.get("data_sha256") or trial.provenance.get("data_sha256"))
        for trial in trials
    }
    if len(data) > 1:
        return f"The trials used {len(data)} different data sets, so they cannot be ranked."
    for key in IMAGE_KEYS:
        if len(values := {text(t.config[key]) for t in trials if key in t.config}) > 1:
            return (
                f"The trials were measured on different images ({key} is "
                f"{listed(sorted(values))}), so they cannot be ranked; run one sweep for each."
            )
    seeds = {str(trial.evaluation.get("seed")) for trial in trials}
    pairs = {_error(trial).ids.tobytes() for trial in trials}
    if len(pairs) > 1 or len(seeds) > 1:
        return (
            "The trials were evaluated on different (image, noise) pairs (EVALUATION.SEED or "
            "EVALUATION.NUM differ), so they cannot be ranked."
        )
    return None


def side_by_side(sweeps: Sequence[SweepResults], folder: Path) -> SweepResults:
    """Several sweeps as one in `folder`, whose cells say of which sweep they are.

    No seed is a block over two sweeps: those of every further one have another million added, and
    intervals are unpaired.  Raises InputError with all that speaks against comparing them.
    """
    names, first, problems = [sweep.name for sweep in sweeps], sweeps[0], []
    for name in {name for name in names if names.count(name) > 1}:
        problems.append(
            f"several sweeps are called {name}; a sweep has its file's name, and its folder's"
        )
    ranked = [rank(sweep) for sweep in sweeps]
    for sweep, one in zip(sweeps, ranked, strict=True):
        if not sweep.is_sweep or sweep.space:
            kind = "searches SPACE within each cell" if sweep.is_sweep else "is one run"
            problems.append(f"{sweep.folder} {kind}; give folders of grids")
        elif one.problem:
            problems.append(f"{sweep.folder}: {one.problem}")
        elif not one.standings:
            problems.append(f"{sweep.folder} has no cell yet that could be ranked")
    every = [t for sweep in sweeps for t in sweep.trials if _why_not(t, True) is None]
    problems += [why] if not problems and (why := _not_comparable(every)) else []
    kinds = {
        "window of log SNR": [
            f"{one.levels[0]} to {one.levels[-1]}" if one.levels else "none" for one in ranked
        ],
        "headline": [_headline(one) for one in ranked],
    }
    for what, found in kinds.items():
        if not problems and len(set(found)) > 1:
            said = ", ".join(f"{a} {b}" for a, b in zip(names, found, strict=True))
            problems.append(
                f"the sweeps differ in their {what}, so they cannot be compared: {said}"
            )
    if problems:
        raise InputError(problems)
    keys = list(dict.fromkeys(key for sweep in sweeps for key in sweep.grid))
    trials, weights = [], {}
    for place, sweep in enumerate(sweeps):
        for trial in sweep.trials:
            known = [t.config for t in (trial, *sweep.trials) if t.cell == trial.cell and t.config]
            own = {key: trial.cell.get(key, known[0].get(key) if known else None) for key in keys}
            seed = trial.seed + place * 10**6
            moved = replace(trial, cell={SWEEP: sweep.name, **own}, seed=seed)
            trials.append(moved)
            weights[moved.key] = sweep.weights.get(trial.key, {})
    grid = {key: tuple({text(t.cell[key]): t.cell[key] for t in trials}.values()) for key in keys}
    return replace(
        first,
        folder=folder,
        name=" beside ".join(names),
        question="",
        command="",
        grid={SWEEP: tuple(names), **grid},
        planned=sum(sweep.planned for sweep in sweeps),
        trials=tuple(trials),
        skipped=tuple(
            replace(one, cell={SWEEP: sweep.name, **one.cell})
            for sweep in sweeps
            for one in sweep.skipped
        ),
        problems=(*_apart(sweeps, keys), *(p for sweep in sweeps for p in sweep.problems)),
        seeds=(),
        weights=weights,
    )


def _headline(ranking: Ranking) -> str:
    """The measures that cells are ordered by, and how samples were drawn for them."""
    drawn = (
        "" if ranking.point is None else f" of {ranking.num_samples} samples, {_way(ranking.point)}"
    )
    return f"{' and '.join(TITLES[m] for m in ranking.measures)}{drawn}"


def _apart(sweeps: Sequence[SweepResults], keys: Sequence[str]) -> Iterator[str]:
    """A line where sweeps differ in what none of their grids varies."""
    found = []
    for key in sorted({k for sweep in sweeps for trial in sweep.trials for k in trial.config}):
        values = [{text(t.config[key]) for t in s.trials if key in t.config} for s in sweeps]
        if key not in keys and not _OWN.match(key) and any(one != values[0] for one in values):
            found.append(f"{key} ({', '.join(listed(sorted(one)) for one in values)})")
    if found:
        yield f"The sweeps differ in more than their grids: {listed(found)}."


def with_baseline(ranking: Ranking, named: str) -> Ranking:
    """The ranking with a baseline: the one cell that has every KEY=value that is named.

    named: `SCHEDULER=linear,PRED_TYPE=noise`; a key may be its last part, and case does not matter.
    """
    if ranking.problem or not ranking.standings:
        return ranking  # nothing is ranked, and the report says why
    wanted = [part.partition("=") for part in re.split(r",(?![^\[]*\])", named)]
    places = [
        place
        for place, standing in enumerate(ranking.standings)
        if all(_has(standing, key.strip(), value.strip()) for key, _, value in wanted)
    ]
    if len(places) != 1:
        matching = [ranking.standings[p].label for p in places] or [
            s.label for s in ranking.standings
        ]
        example = ",".join(
            f"{key.rsplit('.', 1)[-1]}={text(value)}"
            for key, value in ranking.standings[0].cell.items()
        )
        raise InputError(
            f"--baseline {named} names {len(places) or 'none'} of the ranked cells "
            f"({'; '.join(matching[:12])}); give keys and values of exactly one, such as {example}"
        )
    return replace(ranking, baseline=places[0])


def _has(standing: Standing, key: str, value: str) -> bool:
    return any(
        own.upper() == key.upper() or own.upper().endswith("." + key.upper())
        for own, has in standing.cell.items()
        if text(has).upper() == value.upper()
    )
