"""Where the ticks of an axis lie and what is written there: 1, 2 or 5 times powers of ten."""

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10

_SUPERSCRIPT = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)

LOGARITHMIC = 4  # positive numbers whose ratio is larger are drawn on a logarithmic scale


def linear(low: float, high: float, count: int = 6) -> list[tuple[float, str]]:
    """About `count` ticks of an even scale, each with its text."""
    step = _step((high - low) / count)
    places = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    return [(k * step, plain(k * step)) for k in places]


def logarithmic(low: float, high: float, count: int = 7) -> list[tuple[float, str]]:
    """Ticks of a logarithmic scale: whole decades, or 1, 2, 5 where there are fewer than three."""
    first, last = ceil(log10(low) - 1e-9), floor(log10(high) + 1e-9)
    if last - first >= 2:
        every = max(1, ceil((last - first + 1) / count))
        return [(10.0**p, _power(p)) for p in range(first, last + 1, every)]
    several = [m * 10.0**p for p in range(first - 1, last + 2) for m in (1, 2, 5)]
    return [(v, plain(v)) for v in several if low * 0.999 <= v <= high * 1.001]


def decades(values: Sequence[float]) -> tuple[float, float]:
    """The range in half decades that holds every positive finite value."""
    values = [value for value in values if isfinite(value) and value > 0]
    if not values:
        return 0.1, 1.0
    low, high = floor(log10(min(values)) * 2) / 2, ceil(log10(max(values)) * 2) / 2
    return 10.0**low, 10.0 ** (high if high > low else low + 1)


def around(values: Sequence[float]) -> tuple[float, float]:
    """The range from tick to tick of an even scale that holds every finite value."""
    values = [value for value in values if isfinite(value)] or [0.0, 1.0]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    step = _step((high - low) / 5)
    return floor(low / step + 1e-9) * step, ceil(high / step - 1e-9) * step


def beside(values: Sequence[float]) -> tuple[float, float]:
    """A logarithmic range with a little room beside the least and the largest positive value."""
    values = [value for value in values if isfinite(value) and value > 0] or [1.0]
    room = 1.15 if max(values) > min(values) else 2.0
    return min(values) / room, max(values) * room


def plain(value: float) -> str:
    """A tick's number: `0.05`, `−2`, `20k`, `5·10⁻⁵`."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:,g}k".replace("-", "\u2212")
    if 0 < size < 1e-3:
        power = floor(log10(size) + 1e-9)
        return f"{value / 10.0**power:g}\u00b7{_power(power)}".replace("-", "\u2212")
    return f"{value:g}".replace("-", "\u2212")


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** floor(log10(rough)) if rough > 0 else 1.0
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))
