"""Labels: short names of configuration keys, cells and numbers, and what a factor is drawn as."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, isfinite, log10

from ddpm import runs
from ddpm.config import MEASURES
from ddpm.metrics import Interval
from ddpm.report.reading import SweepResults, Value, code, grouped

TITLES = {one.key: one.title for one in MEASURES.values()}
SWEEP = "SWEEP"  # the key of a cell's sweep, where several stand side by side
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
    """Name of a key in a sentence."""
    return _SPOKEN.get(key, key.rsplit(".", 1)[-1])


def varied(cells: Iterable[Mapping[str, Value]]) -> tuple[str, ...]:
    """The keys in which these cells differ, schedule and prediction type first."""
    values: dict[str, set[str]] = {}
    for cell in cells:
        for key, value in cell.items():
            values.setdefault(key, set()).add(code(value))
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
    """`48 s`, `12 min`, `3.2 h`; a dash for None."""
    return "\u2013" if seconds is None else runs.duration(seconds)


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


def interval_text(one: Interval) -> str:
    """`12.31 [11.90, 12.80]`, with as many decimals as the interval's width needs."""
    width = (one.high - one.low) / 2
    digits = common_digits([width])
    value, low, high = (aligned(v, width, digits)[0] for v in (one.value, one.low, one.high))
    return f"{value} [{low}, {high}]"


def signed_digits(value: float) -> str:
    """A number in two digits, in full, with a true minus sign."""
    digits = max(1 - floor(log10(abs(value))), 0) if value else 0
    return signed(value, min(digits, 12))


def _ratio(value: float) -> str:
    """Two digits, and as many more as tell it from 1."""
    digits = max(1 - floor(log10(value)), 0)
    while digits < 12 and value != 1 and round(value, digits) == 1:
        digits += 1
    return signed(value, digits)


def above(mean: float, half_width: float = inf) -> str:
    """A difference of log10 as a ratio: `12 % higher (5.1 to 19 %)`, `2.4 times as high`."""
    ends = [mean] if not isfinite(half_width) else [mean, mean - half_width, mean + half_width]
    if mean >= log10(2):
        shown, unit, words = [_ratio(10**end) for end in ends], "", " times as high"
    elif mean >= 0:
        shown, unit = [signed_digits(100 * (10**end - 1)) for end in ends], " %"
        words = " % higher"
    else:
        shown, unit = [signed_digits(100 * (1 - 10**end)) for end in (ends[0], *ends[:0:-1])], " %"
        words = " % lower"
    inside = f" ({shown[1]} to {shown[2]}{unit})" if len(shown) > 1 else ""
    return f"{shown[0]}{words}{inside}"


def probability(p: float) -> str:
    """`p = 0.012`, `p < 0.001`."""
    if not isfinite(p):
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.{2 if p >= 0.095 else 3}f}"


_PRED_TYPES = ("noise", "image", "velocity", "edm", "flow")

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
        return 0 if self.series is None else self.place(self.series, cell)

    def series_name(self, cell: Cell) -> str:
        """Name of a cell's curve in the legend."""
        return cell_label(cell, ()) if self.series is None else part(self.series, cell[self.series])

    def grouped(self, cells: Iterable[Cell], keys: Sequence[str]) -> dict[str, list[Cell]]:
        """Cells by their values of `keys`, in the grid's order; one group named "" without keys."""
        ordered = sorted(cells, key=lambda cell: [self.place(key, cell) for key in keys])
        return grouped(ordered, lambda cell: cell_label(cell, keys) if keys else "")

    def label(self, cell: Cell) -> str:
        """A cell by the keys in which cells of the sweep differ."""
        return cell_label(cell, tuple(self.values))

    def place(self, key: str, cell: Cell) -> int:
        """Number of a cell's value among the grid's values of `key`."""
        return place_of(self.values[key], cell.get(key))


def axes_of(sweep: SweepResults) -> Axes:
    """The roles of a sweep's factors."""
    keys = varied(sweep.cells)
    series = PRED_TYPE if PRED_TYPE in keys else (keys[-1] if keys else None)
    others = [key for key in keys if key != series]
    rows = SCHEDULER if SCHEDULER in others else (others[0] if others else None)
    return Axes(
        series=series,
        rows=rows,
        panels=tuple(key for key in others if key != rows),
        values={key: _values(key, sweep) for key in keys},
    )


def _values(key: str, sweep: SweepResults) -> tuple[Value, ...]:
    found = (cell[key] for cell in sweep.cells if key in cell)
    values = tuple({code(v): v for v in (*sweep.grid.get(key, ()), *found)}.values())
    if key == PRED_TYPE:
        return tuple(sorted(values, key=lambda v: place_of(_PRED_TYPES, v)))
    return values


def place_of(values: Sequence[Value], value: Value) -> int:
    """Index of a value among values, by its JSON text; their number when it is not among them."""
    texts = [code(one) for one in values]
    return texts.index(code(value)) if code(value) in texts else len(texts)


def capital(words: str) -> str:
    """The words with a capital first letter."""
    return words[:1].upper() + words[1:]
