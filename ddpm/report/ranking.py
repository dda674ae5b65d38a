"""Short names: of configuration keys, of cells, of numbers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, isfinite, log10, nan, prod

import numpy as np

from ddpm.metrics import MEASURES, X0Error, X0Summary, common_levels, interval, summary
from ddpm.report.reading import SweepResults, TrialResult, Value
from ddpm.report.scatter import Spread, spread

PRED_TYPE, SCHEDULER, TIMESTEPS = (
    "TRAINING.PRED_TYPE",
    "TRAINING.NETWORK.SCHEDULER",
    "TRAINING.NETWORK.TIMESTEPS",
)
_SPOKEN = {
    PRED_TYPE: "prediction type",
    SCHEDULER: "schedule",
    TIMESTEPS: "timesteps",
    "NAME": "name",
}
_ORDER = (SCHEDULER, PRED_TYPE, TIMESTEPS)


def spoken(key: str) -> str:
    """What a key is called in a sentence."""
    return _SPOKEN.get(key, key.rsplit(".", 1)[-1])


def varied(cells: Iterable[Mapping[str, Value]]) -> tuple[str, ...]:
    """The keys in which these cells differ, schedule and prediction type first."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for key, value in cell.items():
            values.setdefault(key, set()).add(json.dumps(value))
    keys = [key for key, seen in values.items() if len(seen) > 1]
    return tuple(sorted(keys, key=lambda k: (_ORDER.index(k) if k in _ORDER else len(_ORDER), k)))


def text(value: Value) -> str:
    """A configuration value as a reader writes it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(text, value)) + "]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def part(key: str, value: Value) -> str:
    """One coordinate of a cell: `cosine`, `velocity`, `T=250`, `LEARNING_RATE=0.001`."""
    if key in (PRED_TYPE, SCHEDULER, "NAME"):
        return text(value)
    return f"T={text(value)}" if key == TIMESTEPS else f"{spoken(key)}={text(value)}"


def cell_label(cell: Mapping[str, Value], keys: Sequence[str]) -> str:
    """A cell by the keys in which cells differ: `cosine · velocity · T=250`."""
    used = [key for key in keys if key in cell] or list(cell)
    return " · ".join(part(key, cell[key]) for key in used) or "this run"


def listed(names: Sequence[str], *, limit: int = 6) -> str:
    """`a`, `a and b`, `a, b and c`; beyond the limit `a, b and 7 others`."""
    shown = list(names[:limit])
    if len(names) > limit:
        shown = [*names[: limit - 1], f"{len(names) - limit + 1} others"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def ranges(levels: Sequence[int]) -> str:
    """Integers as ranges: `-8 to 1 and 4`."""
    runs: list[list[int]] = []
    for level in sorted(levels):
        if runs and level == runs[-1][-1] + 1:
            runs[-1].append(level)
        else:
            runs.append([level])
    parts = [signed(r[0]) if len(r) == 1 else f"{signed(r[0])} to {signed(r[-1])}" for r in runs]
    return listed(parts, limit=len(parts)) if parts else "no level"


def signed(value: float, digits: int = 0) -> str:
    """A number with a true minus sign."""
    return f"{value:.{digits}f}".replace("-", "\u2212")


def number_with_error(value: float, error: float) -> tuple[str, str]:
    """Value and error with as many decimals as the error's two first digits need."""
    digits = 4
    if isfinite(error) and error > 0:
        digits = min(max(1 - floor(log10(error)), 0), 6)
    return signed(value, digits), f"{error:.{digits}f}" if isfinite(error) else "\u2013"


def common_digits(errors: Sequence[float]) -> int | None:
    """Decimals for a column of numbers with these errors: the middle of what each needs; None where
    most of them need too different ones.
    """
    each = sorted(max(1 - floor(log10(e)), 0) for e in errors if isfinite(e) and e > 0)
    tenth = len(each) // 10
    if not each or each[-1 - tenth] - each[tenth] > 2:
        return None
    return min(each[len(each) // 2], 6)


def aligned(value: float, error: float, digits: int | None) -> tuple[str, str]:
    """Value and error with so many decimals; as many as the error needs where that shows none of
    it, or digits is None.
    """
    if digits is None or not isfinite(error) or 0 < error < 0.5 / 10**digits:
        return number_with_error(value, error)
    return signed(value, digits), f"{error:.{digits}f}"


def with_error(value: float, error: float) -> str:
    """`−0.651 ± 0.012`."""
    return " \u00b1 ".join(number_with_error(value, error))


def duration(seconds: float | None) -> str:
    """`48 s`, `12.5 min`, `3.2 h`."""
    if seconds is None:
        return "\u2013"
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes as `512 MiB` or `1.4 GiB`."""
    if count is None:
        return "\u2013"
    mebibytes = count / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def energy(joules: float | None) -> str:
    """Joules as `310 kJ` or `1.25 kWh`."""
    if joules is None:
        return "\u2013"
    return f"{joules / 1000:.3g} kJ" if joules < 3.6e5 else f"{joules / 3.6e6:.3g} kWh"


# --------
# The two rankings of a sweep's cells, on the noise levels all of them share.
#
# A cell is one point of the grid; its trials differ in their seed alone.

# Of a grid's combinations; with fewer, what each key does cannot be separated.
_LEAST_FILLED = 0.5


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One cell that can be ranked: its evaluated trials by seed and their two numbers."""

    cell: Mapping[str, Value]
    label: str
    trials: Mapping[int, TrialResult]
    summaries: Mapping[int, X0Summary]

    def code(self, key: str) -> str:
        """Its value of a key as text that can be compared."""
        return json.dumps(self.cell.get(key), sort_keys=True)

    def value(self, measure: str) -> float:
        """The number, mean over seeds."""
        return float(np.mean([one.value(measure) for one in self.summaries.values()]))

    def error(self, measure: str) -> float:
        """95 % half-width over seeds; for one seed the evaluation error, over pairs."""
        if len(self.summaries) > 1:
            return interval([one.value(measure) for one in self.summaries.values()])[1]
        return next(iter(self.summaries.values())).evaluation_error(measure)

    def curve(self, levels: Sequence[int]) -> np.ndarray:
        """MSE at these levels, mean over pairs and seeds."""
        return np.mean([_error(t).at(levels).mean(axis=1) for t in self.trials.values()], axis=0)

    @property
    def levels(self) -> tuple[int, ...]:
        """All levels its trials were evaluated at."""
        return common_levels(_error(trial).levels for trial in self.trials.values())


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The cells in order of mean log10 error, what they share, and what could not be ranked."""

    levels: tuple[int, ...]
    standings: tuple[Standing, ...]
    excluded: tuple[tuple[str, str], ...]  # (cell, reason)
    problem: str | None = None  # why the cells cannot be compared at all
    baseline: int | None = None  # the place of a cell that others are compared with by wish

    def order(self, measure: str) -> tuple[int, ...]:
        """Places in `standings` from the lowest of the measure up."""
        return self._orders[measure]

    def rank(self, place: int, measure: str) -> int:
        """1 for the lowest."""
        return self._ranks[measure][place]

    @cached_property
    def _orders(self) -> dict[str, tuple[int, ...]]:
        values = {m: [standing.value(m) for standing in self.standings] for m in MEASURES}
        return {m: tuple(map(int, np.argsort(values[m], kind="stable"))) for m in MEASURES}

    @cached_property
    def _ranks(self) -> dict[str, dict[int, int]]:
        return {m: {place: k + 1 for k, place in enumerate(self._orders[m])} for m in MEASURES}

    @cached_property
    def recommended(self) -> Standing | None:
        """The winner where both rankings agree, else the lowest sum of ranks. No claim."""
        if not self.standings or self.problem:
            return None
        places = range(len(self.standings))
        totals = [sum(self.rank(place, measure) for measure in MEASURES) for place in places]
        return self.standings[int(np.argmin(totals))]

    @property
    def num_seeds(self) -> int:
        """Seeds the cell with the fewest has."""
        return min((len(standing.summaries) for standing in self.standings), default=0)

    @property
    def seeds(self) -> list[int]:
        """All seeds that a ranked cell has."""
        return sorted({seed for standing in self.standings for seed in standing.summaries})

    def place(self, standing: Standing) -> int:
        """Its place in `standings`."""
        return self._places[id(standing)]

    @staticmethod
    def number(standing: Standing, measure: str) -> float:
        """What is compared: a number as log10, mean over seeds."""
        return float(np.mean([_logarithm(one, measure) for one in standing.summaries.values()]))

    def table(self, measure: str) -> np.ndarray:
        """The numbers that are compared, (cells, seeds), NaN where a trial is missing."""
        seeds = self.seeds
        return np.array(
            [
                [
                    _logarithm(one.summaries[k], measure) if k in one.summaries else nan
                    for k in seeds
                ]
                for one in self.standings
            ]
        )

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
        """How cells scatter over seeds; None where no cell has two."""
        return self._spreads[measure]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {id(standing): place for place, standing in enumerate(self.standings)}

    @cached_property
    def _spreads(self) -> dict[str, Spread | None]:
        if not self.standings:
            return dict.fromkeys(MEASURES)
        return {measure: spread(self.table(measure), codes=self.codes) for measure in MEASURES}


def rank(sweep: SweepResults) -> Ranking:
    """Ranks a sweep's cells; what cannot be compared is excluded with its reason."""
    keys = varied([*(t.cell for t in sweep.trials), *(s.cell for s in sweep.skipped)])
    usable: list[tuple[str, list[TrialResult]]] = []
    excluded: list[tuple[str, str]] = []
    for trials in _by_cell(sweep.trials):
        label = cell_label(trials[0].cell, keys)
        reasons = {id(trial): _why_not(trial, sweep.is_sweep) for trial in trials}
        good = [trial for trial in trials if reasons[id(trial)] is None]
        if good:
            usable.append((label, good))
        excluded += [(label, reason) for reason in sorted(filter(None, reasons.values()))]
    problem = _not_comparable([trial for _, trials in usable for trial in trials])
    levels = common_levels(_error(t).levels for _, trials in usable for t in trials)
    if usable and not levels:
        problem = problem or "The cells share no noise level, so no number compares them."
    if problem or not usable:
        return Ranking(levels=levels, standings=(), excluded=tuple(excluded), problem=problem)
    standings = [_standing(label, trials, levels) for label, trials in usable]
    standings.sort(key=lambda standing: standing.value(MEASURES[0]))
    return Ranking(levels=levels, standings=tuple(standings), excluded=tuple(excluded))


def _logarithm(summary: X0Summary, measure: str) -> float:
    if measure == MEASURES[0]:
        return summary.mean_log10_mse
    return float(np.log10(summary.snr_weighted_mse))


def _error(trial: TrialResult) -> X0Error:
    assert trial.error is not None  # `rank` keeps evaluated trials only
    return trial.error


def shared_seeds(standings: Iterable[Standing]) -> list[int]:
    """The seeds all of these cells have."""
    sets = [set(standing.summaries) for standing in standings]
    return sorted(set.intersection(*sets)) if sets else []


def _by_cell(trials: Sequence[TrialResult]) -> list[list[TrialResult]]:
    cells: dict[str, list[TrialResult]] = {}
    for trial in trials:
        cells.setdefault(trial.key, []).append(trial)
    return list(cells.values())


def _standing(label: str, trials: Sequence[TrialResult], levels: Sequence[int]) -> Standing:
    return Standing(
        cell=trials[0].cell,
        label=label,
        trials={trial.seed: trial for trial in trials},
        summaries={trial.seed: summary(_error(trial), levels) for trial in trials},
    )


def _why_not(trial: TrialResult, must_be_done: bool) -> str | None:
    """Why a trial has no place in the ranking; None when it has."""
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
    """Why these trials were not measured on the same pairs; None when they were."""
    data = {
        str(trial.evaluation.get("data_sha256") or trial.provenance.get("data_sha256"))
        for trial in trials
    }
    if len(data) > 1:
        return f"The trials used {len(data)} different data sets, so they cannot be ranked."
    seeds = {str(trial.evaluation.get("seed")) for trial in trials}
    pairs = {_error(trial).ids.tobytes() for trial in trials}
    if len(pairs) > 1 or len(seeds) > 1:
        return (
            "The trials were evaluated on different (image, noise) pairs (EVALUATION.SEED or "
            "EVALUATION.NUM differ), so they cannot be ranked."
        )
    return None


# --------
# Which factor of a grid becomes colour, row or panel, the same in every picture of a report.

_PRED_TYPES = ("noise", "image", "velocity")

Cell = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """series: the key that becomes colour and heat map column, None for a single cell.

    rows: the key that becomes heat map row.  panels: all other keys in which cells differ.
    """

    series: str | None
    rows: str | None
    panels: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]  # of every varied key, in the grid's order

    @property
    def facets(self) -> tuple[str, ...]:
        """The keys that tell charts apart, where curves of one chart differ in `series`."""
        return (*((self.rows,) if self.rows else ()), *self.panels)

    def style(self, cell: Cell) -> int:
        """The colour number of a cell's curve."""
        return (
            0 if self.series is None else place_of(self.values[self.series], cell.get(self.series))
        )

    def series_name(self, cell: Cell) -> str:
        """What a cell's curve is called in the legend."""
        return cell_label(cell, ()) if self.series is None else part(self.series, cell[self.series])

    def grouped(self, cells: Iterable[Cell], keys: Sequence[str]) -> dict[str, list[Cell]]:
        """Cells by their values of `keys`, in the grid's order; one group named "" without keys."""
        ordered = sorted(cells, key=lambda cell: [self.place(key, cell) for key in keys])
        groups: dict[str, list[Cell]] = {}
        for cell in ordered:
            groups.setdefault(cell_label(cell, keys) if keys else "", []).append(cell)
        return groups

    def place(self, key: str, cell: Cell) -> int:
        """Number of a cell's value among the grid's values of `key`."""
        return place_of(self.values[key], cell.get(key))


def axes_of(sweep: SweepResults) -> Axes:
    """The roles of a sweep's factors."""
    cells = [*(trial.cell for trial in sweep.trials), *(one.cell for one in sweep.skipped)]
    keys = varied(cells)
    series = PRED_TYPE if PRED_TYPE in keys else (keys[-1] if keys else None)
    others = [key for key in keys if key != series]
    rows = SCHEDULER if SCHEDULER in others else (others[0] if others else None)
    return Axes(
        series=series,
        rows=rows,
        panels=tuple(key for key in others if key != rows),
        values={key: _values(key, sweep, cells) for key in keys},
    )


def _values(key: str, sweep: SweepResults, cells: Iterable[Cell]) -> tuple[Value, ...]:
    seen = {_text(v): v for v in (*sweep.grid.get(key, ()), *(c[key] for c in cells if key in c))}
    values = tuple(seen.values())
    if key == PRED_TYPE:
        return tuple(sorted(values, key=lambda v: place_of(_PRED_TYPES, v)))
    return values


def place_of(values: Sequence[Value], value: Value) -> int:
    """Index of a value among values, by its JSON text; their number when it is not among them."""
    texts = [_text(one) for one in values]
    return texts.index(_text(value)) if _text(value) in texts else len(texts)


def _text(value: Value) -> str:
    return json.dumps(value, sort_keys=True)
