"""Short names: of configuration keys, of cells, of numbers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import floor, isfinite, log10

from ddpm.report.files import Value

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
