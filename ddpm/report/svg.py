"""Line charts as inline SVG. Colours come from the page's style sheet."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, isfinite, log10

_SUPERSCRIPT = str.maketrans(
    "-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 38


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. style: 0, 1, ... picks colour and marker; "a", "b" are the reference lines."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | str
    has_markers: bool = True
    tips: Sequence[str] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plane of a chart: y is logarithmic; x outside `solid` is shaded, curves dashed."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_title: str
    y_title: str
    solid: tuple[float, float] | None = None
    width: int = 360
    height: int = 260

    def x(self, value: float) -> float:
        """Horizontal place of a value, in the units of the drawing."""
        low, high = self.x_range
        return _LEFT + (value - low) / ((high - low) or 1) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a positive value, kept inside the frame."""
        low, high = (log10(edge) for edge in self.y_range)
        share = (log10(max(value, 1e-300)) - low) / ((high - low) or 1)
        inside = self.height - _TOP - _BOTTOM
        return _TOP + (1 - min(max(share, -0.02), 1.02)) * inside


def line_chart(series: Sequence[Series], frame: Frame, label: str) -> str:
    """The curves in their frame as one <svg>; `label` is what a screen reader says."""
    parts = [
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(label)}">',
        _ground(frame),
        *_x_axis(frame),
        *_y_axis(frame),
        *(_curve(one, frame) for one in series),
        "</svg>",
    ]
    return "".join(parts)


def y_range(series: Sequence[Series]) -> tuple[float, float]:
    """The whole decades that hold every positive finite value of these curves."""
    values = [v for one in series for v in one.y if isfinite(v) and v > 0]
    if not values:
        return 0.1, 1.0
    low, high = floor(log10(min(values)) * 2) / 2, ceil(log10(max(values)) * 2) / 2
    return 10.0**low, 10.0 ** (high if high > low else low + 1)


def _ground(frame: Frame) -> str:
    bottom = frame.height - _BOTTOM
    if frame.solid is None:
        return ""
    low, high = frame.x(frame.solid[0]), frame.x(frame.solid[1])
    left, right = frame.x(frame.x_range[0]), frame.x(frame.x_range[1])
    edges = [(left, low), (high, right)]
    return "".join(
        f'<rect class="outside" x="{a:.1f}" y="{_TOP}" width="{b - a:.1f}" '
        f'height="{bottom - _TOP}"/>'
        for a, b in edges
        if b - a > 0.5
    )


def _x_axis(frame: Frame) -> list[str]:
    low, high = frame.x_range
    bottom = frame.height - _BOTTOM
    step = _step((high - low) / 6)
    first = ceil(low / step)
    ticks = [k * step for k in range(first, floor(high / step + 1e-9) + 1)]
    parts = [
        f'<text class="tick" x="{frame.x(t):.1f}" y="{bottom + 14}" text-anchor="middle">'
        f"{_plain(t)}</text>"
        for t in ticks
    ]
    middle = (_LEFT + frame.width - _RIGHT) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">'
        f"{escape(frame.x_title)}</text>"
    )
    return parts


def _y_axis(frame: Frame) -> list[str]:
    low, high = (log10(edge) for edge in frame.y_range)
    whole = list(range(ceil(low - 1e-9), floor(high + 1e-9) + 1))
    ticks = [(10.0**p, f"10{str(p)}") for p in whole[:: max(1, ceil(len(whole) / 7))]]
    labels = [(value, "10" + name[2:].translate(_SUPERSCRIPT)) for value, name in ticks]
    if len(whole) < 3:
        base = floor(low)
        shown = [m * 10.0**p for p in range(base, ceil(high) + 1) for m in (1, 2, 5)]
        labels = [
            (v, f"{v:g}")
            for v in shown
            if frame.y_range[0] * 0.999 <= v <= frame.y_range[1] * 1.001
        ]
    parts, right = [], frame.width - _RIGHT
    for value, name in labels:
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{name}</text>'
        )
    middle = (_TOP + frame.height - _BOTTOM) / 2
    parts.append(
        f'<text class="title" transform="translate(10 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(frame.y_title)}</text>'
    )
    return parts


def _curve(series: Series, frame: Frame) -> str:
    points = [
        (x, y, series.tips[k] if k < len(series.tips) else "")
        for k, (x, y) in enumerate(zip(series.x, series.y, strict=True))
        if isfinite(y) and y > 0
    ]
    low, high = frame.solid or frame.x_range
    inner = [p for p in points if low <= p[0] <= high]
    pieces = [("", inner)]
    if frame.solid is not None:
        pieces += [
            (" dashed", [p for p in points if p[0] <= low]),
            (" dashed", [p for p in points if p[0] >= high]),
        ]
    lines = "".join(
        f'<polyline class="line{extra}" points="{_path(piece, frame)}"/>'
        for extra, piece in pieces
        if len(piece) > 1
    )
    marks = "".join(_marker(p, series.style, frame) for p in points) if series.has_markers else ""
    return f'<g class="s s-{series.style}" data-series="{escape(series.name)}">{lines}{marks}</g>'


def _path(points: Sequence[tuple[float, float, str]], frame: Frame) -> str:
    return " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y, _ in points)


def _marker(point: tuple[float, float, str], style: int | str, frame: Frame) -> str:
    x, y = frame.x(point[0]), frame.y(point[1])
    tip = f' data-tip="{escape(point[2])}"' if point[2] else ""
    return f'<path class="mark" d="{marker_path(style, x, y)}"{tip}/>'


def marker_path(style: int | str, x: float, y: float, r: float = 2.6) -> str:
    """Circle, square, triangle or diamond around (x, y): the second sign beside colour."""
    shape = style % 4 if isinstance(style, int) else 0
    if shape == 1:
        return f"M{x - r:.1f},{y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if shape == 2:
        return f"M{x:.1f},{y - 1.3 * r:.1f}l{1.2 * r:.1f},{2.2 * r:.1f}h{-2.4 * r:.1f}z"
    if shape == 3:
        d = 1.35 * r
        return f"M{x:.1f},{y - d:.1f}l{d:.1f},{d:.1f}l{-d:.1f},{d:.1f}l{-d:.1f},{-d:.1f}z"
    return f"M{x - r:.1f},{y:.1f}a{r},{r} 0 1 0 {2 * r:.1f},0a{r},{r} 0 1 0 {-2 * r:.1f},0z"


def _step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** floor(log10(rough)) if rough > 0 else 1.0
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough - 1e-12)


def _plain(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}".replace("-", "\u2212")


def whisker(ends: tuple[float, float, float], scale: tuple[float, float]) -> str:
    """Low end, value and high end of an interval on a common scale, for a table's cell."""
    span = (scale[1] - scale[0]) or 1.0
    low, middle, high = (4 + 58 * min(max((v - scale[0]) / span, 0.0), 1.0) for v in ends)
    return (
        '<svg class="whisker" viewBox="0 0 66 14" aria-hidden="true">'
        '<line class="rule" x1="2" x2="64" y1="7" y2="7"/>'
        f'<line class="bar" x1="{low:.1f}" x2="{high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{middle:.1f}" cy="7" r="3.2"/></svg>'
    )
