"""Where the ticks of an axis lie and what is written there: 1, 2 or 5 times powers of ten."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from math import ceil, floor, isfinite, log10

from ddpm.report.ranking import Axes, Cell, Ranking, cell_label

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


# --------
# Charts as inline SVG. Colours come from the page's style sheet.
#
# Every chart carries its scales in `data-frame`, so that the page's script can read the values back
# from the drawn points: nothing is stored twice.

COLOURS = 8  # in report.css; beyond them colours repeat
_RIGHT, _TOP, _BOTTOM = 12, 10, 38
_TITLE, _DIGIT = 22, 6.4  # widths of the y axis' title and of a character of its ticks


@dataclass(frozen=True, kw_only=True)
class LineSeries:
    """One curve. style: 0, 1, ... picks colour and marker; "a", "b" are the reference lines.

    low, high: ends of intervals, drawn as bars, or as one band around the curve.
    mark_every: a marker at every so many points, at all by 1.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | str
    has_markers: bool = True
    has_line: bool = True
    tips: Sequence[str] = field(default=())
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())
    is_band: bool = False
    mark_every: int = 1


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plane of a chart. x outside `solid` is shaded, curves dashed there."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_title: str
    y_title: str
    solid: tuple[float, float] | None = None
    x_is_log: bool = False
    y_is_log: bool = True
    width: int = 360
    height: int = 260

    @cached_property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Values and texts of the y axis."""
        return (logarithmic if self.y_is_log else linear)(*self.y_range)

    @cached_property
    def left(self) -> float:
        """Left edge: beside the longest text of the y axis."""
        return max(48, _TITLE + _DIGIT * max((len(text) for _, text in self.y_ticks), default=0))

    def x(self, value: float) -> float:
        """Horizontal place of a value, in the units of the drawing."""
        share = _share(value, self.x_range, self.x_is_log)
        return self.left + share * (self.width - self.left - _RIGHT)

    def y(self, value: float) -> float:
        """Vertical place of a value, kept inside the frame."""
        share = min(max(_share(value, self.y_range, self.y_is_log), -0.02), 1.02)
        return _TOP + (1 - share) * (self.height - _TOP - _BOTTOM)

    def has(self, value: float) -> bool:
        """Whether a value has a place on the y axis."""
        return isfinite(value) and (value > 0 or not self.y_is_log)

    def to_text(self) -> str:
        """Scales and edges, for the page's script: x low, high, is log; y; left, top, right,
        bottom.
        """
        edges = (self.left, _TOP, self.width - _RIGHT, self.height - _BOTTOM)
        scales = (*self.x_range, int(self.x_is_log), *self.y_range, int(self.y_is_log), *edges)
        return " ".join(f"{number:.6g}" for number in scales)


def _share(value: float, ends: tuple[float, float], is_log: bool) -> float:
    low, high = map(log10, ends) if is_log else ends
    value = log10(max(value, 1e-300)) if is_log else value
    return (value - low) / ((high - low) or 1)


def line_chart(series: Sequence[LineSeries], frame: Frame, label: str) -> str:
    """The curves in their frame as one <svg>; `label` is what a screen reader says."""
    kind = "chart" if all(one.has_line for one in series) else "chart scatter"
    parts = [
        f'<svg class="{kind}" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(label)}" data-frame="{frame.to_text()}" '
        f'data-x="{escape(frame.x_title)}">',
        _ground(frame),
        *_x_axis(frame),
        *_y_axis(frame),
        *(_curve(one, frame) for one in series),
        "</svg>",
    ]
    return "".join(parts)


def y_range(series: Sequence[LineSeries]) -> tuple[float, float]:
    """The half decades that hold every positive finite value of these curves."""
    return decades([value for one in series for value in one.y])


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
    found = (logarithmic if frame.x_is_log else linear)(*frame.x_range)
    bottom = frame.height - _BOTTOM
    parts = [
        f'<text class="tick" x="{frame.x(value):.1f}" y="{bottom + 15}" text-anchor="middle">'
        f"{name}</text>"
        for value, name in found
    ]
    middle = (frame.left + frame.width - _RIGHT) / 2
    parts.append(
        f'<text class="title" x="{middle:.0f}" y="{frame.height - 6}" text-anchor="middle">'
        f"{escape(frame.x_title)}</text>"
    )
    return parts


def _y_axis(frame: Frame) -> list[str]:
    parts, left, right = [], frame.left, frame.width - _RIGHT
    for value, name in frame.y_ticks:
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{left:.1f}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{left - 5:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{name}'
            "</text>"
        )
    middle = (_TOP + frame.height - _BOTTOM) / 2
    parts.append(
        f'<text class="title" transform="translate(10 {middle:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(frame.y_title)}</text>'
    )
    return parts


@dataclass(frozen=True, kw_only=True)
class _Point:
    place: int
    x: float
    y: float


def _curve(series: LineSeries, frame: Frame) -> str:
    both = enumerate(zip(series.x, series.y, strict=True))
    points = [_Point(place=k, x=x, y=y) for k, (x, y) in both if frame.has(y)]
    lines = "".join(_lines(points, frame)) if series.has_line else ""
    spread = "".join(_intervals(series, points, frame)) if series.low else ""
    marked = points[series.mark_every // 2 :: series.mark_every] if series.has_markers else []
    marks = "".join(_marker(series, point, frame) for point in marked)
    return (
        f'<g class="s s-{colour(series.style)}" data-series="{escape(series.name)}">'
        f"{spread}{lines}{marks}</g>"
    )


def _lines(points: Sequence[_Point], frame: Frame) -> Iterator[str]:
    low, high = frame.solid or frame.x_range
    pieces = [("", [p for p in points if low <= p.x <= high])]
    if frame.solid is not None:
        pieces.append((" dashed", [p for p in points if p.x <= low]))
        pieces.append((" dashed", [p for p in points if p.x >= high]))
    for extra, piece in pieces:
        if len(piece) > 1:
            places = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.2f}" for p in piece)
            yield f'<polyline class="line{extra}" points="{places}"/>'


def _intervals(series: LineSeries, points: Sequence[_Point], frame: Frame) -> Iterator[str]:
    ends = [
        (frame.x(p.x), frame.y(series.low[p.place]), frame.y(series.high[p.place]))
        for p in points
        if isfinite(series.low[p.place]) and isfinite(series.high[p.place])
    ]
    if series.is_band and len(ends) > 1:
        around = [f"{x:.1f},{low:.1f}" for x, low, _ in ends]
        around += [f"{x:.1f},{high:.1f}" for x, _, high in reversed(ends)]
        yield f'<polygon class="band" points="{" ".join(around)}"/>'
    elif not series.is_band:
        bars = "".join(f"M{x:.1f},{low:.1f}V{high:.1f}" for x, low, high in ends)
        yield f'<path class="bars" d="{bars}"/>'


def _marker(series: LineSeries, point: _Point, frame: Frame) -> str:
    tip = series.tips[point.place] if point.place < len(series.tips) else ""
    said = f' data-tip="{escape(tip)}"' if tip else ""
    x, y = frame.x(point.x), frame.y(point.y)
    return f'<path class="mark" d="{marker_path(series.style, x, y)}"{said}/>'


def colour(style: int | str) -> int | str:
    """The number of a style's colour in the style sheet."""
    return style % COLOURS if isinstance(style, int) else style


def marker_path(style: int | str, x: float, y: float, r: float = 2.6) -> str:
    """Circle, square, triangle or diamond around (x, y): the second sign beside colour."""
    # where colours repeat, the marker is another one
    shape = (style + style // COLOURS) % 4 if isinstance(style, int) else 0
    if shape == 1:
        return f"M{x - r:.1f},{y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"
    if shape == 2:
        return f"M{x:.1f},{y - 1.3 * r:.1f}l{1.2 * r:.1f},{2.2 * r:.1f}h{-2.4 * r:.1f}z"
    if shape == 3:
        d = 1.35 * r
        return f"M{x:.1f},{y - d:.1f}l{d:.1f},{d:.1f}l{-d:.1f},{d:.1f}l{-d:.1f},{-d:.1f}z"
    return f"M{x - r:.1f},{y:.1f}a{r},{r} 0 1 0 {2 * r:.1f},0a{r},{r} 0 1 0 {-2 * r:.1f},0z"


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


# --------
# What the charts of a section share: a legend that hides curves, and charts side by side.

FACETS = 12


def chosen(
    cells: Sequence[Cell],
    keys: Sequence[str],
    axes: Axes,
    ranking: Ranking,
    most: int = FACETS,
) -> dict[str, list[Cell]]:
    """Groups of cells that differ in `keys`, in the grid's order; where there are more than `most`,
    those that hold the best cells.
    """
    groups = axes.grouped(cells, keys)
    if len(groups) <= most:
        return groups
    titles = {cell_label(cell, keys): None for cell in (s.cell for s in ranking.standings)}
    kept = set(list({**titles, **dict.fromkeys(groups)})[:most])
    return {title: group for title, group in groups.items() if title in kept}


def facets(charts: Mapping[str, str], columns: int, total: int | None = None) -> str:
    """Titled charts side by side; a sentence says how many of `total` groups are shown."""
    figures = "".join(
        f"<figure>{f'<h4>{escape(title)}</h4>' if title else ''}{svg}</figure>"
        for title, svg in charts.items()
    )
    note = ""
    if total is not None and total > FACETS:
        note = (
            f"<p class='note'>The {FACETS} charts that hold the best cells are shown, of {total}; "
            "all numbers are in the tables beside this file.</p>"
        )
    return f'<div class="facets columns-{min(columns, len(charts))}">{figures}</div>{note}'


def in_order(series: Iterable[LineSeries]) -> list[LineSeries]:
    """By their styles, as in the legend."""
    return sorted(series, key=lambda one: (isinstance(one.style, str), str(one.style).zfill(3)))


def first_each(charts: Iterable[Sequence[LineSeries]]) -> list[LineSeries]:
    """One series of each name, in order, for the legend."""
    return in_order({one.name: one for some in charts for one in some}.values())


def legend(series: Sequence[LineSeries]) -> str:
    """Buttons that name the curves; a click hides one. A single curve needs none."""
    if len(series) < 2:
        return ""
    items = "".join(
        f'<button type="button" aria-pressed="true" data-series="{escape(one.name)}">'
        f'<svg viewBox="0 0 30 12" aria-hidden="true"><g class="s-{colour(one.style)} s">'
        + ('<polyline class="line" points="1,6 29,6"/>' * one.has_line)
        + (f'<path class="mark" d="{marker_path(one.style, 15, 6, 3.4)}"/>' * one.has_markers)
        + f"</g></svg>{escape(one.name)}</button>"
        for one in series
    )
    return f'<div class="legend" role="group" aria-label="Curves shown">{items}</div>'


# --------
# Plain tables of text in HTML; long ones are folded and cut into pages of rows.

MANY = 60  # rows shown at once; the rest is folded


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    wrap: Sequence[int] = (),
    code: Sequence[int] = (),
    numbers: Sequence[int] = (),
    fold: str = "",
) -> str:
    """A table, every cell escaped; columns in `wrap` break, in `code` are set as code.

    numbers: columns set to the right.  fold: what a folded table is called; "" shows the first
    rows and folds those beyond `MANY`.
    """
    if fold:
        whole = _table(head, rows, wrap, code, numbers)
        return f"<details class='data'><summary>{escape(fold)}</summary>{whole}</details>"
    shown = _table(head, rows[:MANY], wrap, code, numbers)
    if len(rows) <= MANY:
        return shown
    rest = _table(head, rows[MANY:], wrap, code, numbers)
    more = f"{len(rows) - MANY:,} more rows"
    return f"{shown}<details class='data'><summary>{more}</summary>{rest}</details>"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    wrap: Sequence[int],
    code: Sequence[int],
    numbers: Sequence[int],
) -> str:
    kinds = {**dict.fromkeys(wrap, "wrap"), **dict.fromkeys(numbers, "right")}
    heads = "".join(
        f'<th scope="col" class="{"right" if k in numbers else "left"}">{escape(name)}</th>'
        for k, name in enumerate(head)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kinds.get(k, "left")}">'
            f"{f'<code>{escape(value)}</code>' if k in code else escape(value)}</td>"
            for k, value in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{heads}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
