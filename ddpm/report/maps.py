"""The ranking table and the heat maps as HTML tables, to be read aloud, copied and printed."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, log10

import numpy as np

from ddpm.measures import MEASURES
from ddpm.report.axes import Axes, place
from ddpm.report.charts import chosen
from ddpm.report.costs import Cost, cost
from ddpm.report.data import Sweep
from ddpm.report.labels import aligned, common_digits, number_with_error, part, signed, size, spoken
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.svg import whisker
from ddpm.report.verdict import NAMES, spread

_MANY = 60  # rows shown at once; the rest is folded
_PANELS = 12
_LEVEL_ROWS = 30
_PALE, _DEEP = (226, 234, 242), (8, 76, 140)
_MIDDLE = 0.179  # of this luminance, black and white text have the same contrast, 4.6 : 1


def ranking_table(ranking: Ranking) -> str:
    """Every ranked cell with both numbers, their errors and its cost, the lowest first."""
    scales = {measure: _scale(ranking.standings, measure) for measure in MEASURES}
    digits = {m: common_digits([s.error(m) for s in ranking.standings]) for m in MEASURES}
    costs = [cost(list(standing.trials.values())) for standing in ranking.standings]
    all_packed = all(one.is_packed for one in costs)
    many_seeds = any(len(standing.summaries) > 1 for standing in ranking.standings)
    rows = [
        _row(
            ranking,
            at,
            scales,
            digits,
            costs[at],
            mark_packed=not all_packed,
            with_seeds=many_seeds,
        )
        for at in range(len(ranking.standings))
    ]
    seeds = "<th>seeds</th>" if many_seeds else ""
    packed = "<br>packed" if all_packed else ""
    head = (
        '<thead><tr><th>#</th><th class="left">cell</th>'
        f'<th class="left">{NAMES[MEASURES[0]]}</th><th class="left">{NAMES[MEASURES[1]]}</th>'
        f"<th>rank<br>by it</th>{seeds}<th>images/s{packed}</th><th>{_compute_unit(costs)}</th>"
        "<th>peak<br>memory</th></tr></thead>"
    )
    body = _ranked(head, rows[:_MANY])
    if len(rows) > _MANY:
        body = (
            '<div class="filter" hidden><label>Find cells <input type="search" '
            f'placeholder="words of their names"></label></div>{body}'
            f"<details class='data'><summary>{len(rows) - _MANY} more cells</summary>"
            f"{_ranked(head, rows[_MANY:])}</details>"
        )
    low, high = signed(ranking.levels[0]), signed(ranking.levels[-1])
    return (
        f"{body}<p class='note'>Lower is better. Averages run over the {len(ranking.levels)} "
        f"log-SNR levels from {low} to {high} that all cells share; "
        f"{escape(spread(ranking.standings))}. <em>{NAMES[MEASURES[0]].capitalize()}</em>: mean "
        "over levels of log10 MSE of the x0 estimate; 0.1 lower is a 21 % smaller error at every "
        f"level. <em>{NAMES[MEASURES[1]]}</em>: mean over levels of SNR \u00d7 MSE, which is the "
        "error of the noise; the nearly clean levels weigh most.</p>"
    )


def _ranked(head: str, rows: Sequence[str]) -> str:
    body = f"<tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="ranking">{head}{body}</table></div>'


def _row(
    ranking: Ranking,
    at: int,
    scales: Mapping[str, tuple[float, float]],
    digits: Mapping[str, int | None],
    costs: Cost,
    *,
    mark_packed: bool,
    with_seeds: bool,
) -> str:
    standing = ranking.standings[at]
    numbers = "".join(
        f'<td class="left"><span class="number">{_number(standing, m, digits[m])}</span>'
        f"{whisker(_ends(standing, m), scales[m])}</td>"
        for m in MEASURES
    )
    seeds = f"<td>{len(standing.summaries)}</td>" if with_seeds else ""
    best = ' class="best"' if standing is ranking.recommended else ""
    long = ' class="long"' if len(standing.label) > 36 else ""
    return (
        f'<tr{best}><td>{at + 1}</td><th scope="row"{long}>{escape(standing.label)}</th>{numbers}'
        f"<td>{ranking.rank(at, MEASURES[1])}</td>{seeds}<td>{_speed(costs, mark_packed)}</td>"
        f"<td>{_seconds(costs)}</td><td>{size(costs.peak_memory_bytes)}</td></tr>"
    )


def _number(standing: Standing, measure: str, digits: int | None) -> str:
    value, error = aligned(standing.value(measure), standing.error(measure), digits)
    return f'{value} <span class="error">\u00b1 {error}</span>'


def _speed(costs: Cost, mark_packed: bool) -> str:
    if costs.images_per_s is None:
        return "\u2013"
    is_marked = mark_packed and costs.is_packed
    mark = '<span class="mark-packed">packed</span>' if is_marked else ""
    return f"{costs.images_per_s:,.0f}{mark}"


def _seconds(costs: Cost) -> str:
    if costs.compute_seconds is None:
        return "\u2013"
    return f"{costs.compute_seconds:,.{0 if costs.compute_seconds >= 100 else 1}f}"


def _compute_unit(costs: Sequence[Cost]) -> str:
    return " / ".join(sorted({one.unit for one in costs})).replace("-", "-<br>")


def _ends(standing: Standing, measure: str) -> tuple[float, float, float]:
    """Value - error, value, value + error, where they lie on a scale of ratios."""
    value, error = standing.value(measure), standing.error(measure)
    ends = [value - error, value, value + error] if isfinite(error) else [value] * 3
    if measure == MEASURES[0]:
        return ends[0], ends[1], ends[2]
    low, middle, high = (log10(max(end, 1e-3 * value, 1e-300)) for end in ends)
    return low, middle, high


def _scale(standings: Sequence[Standing], measure: str) -> tuple[float, float]:
    ends = [_ends(standing, measure) for standing in standings]
    return min(low for low, _, _ in ends), max(high for _, _, high in ends)


def heat_maps_section(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """The maps and what their rows and columns are; "" without two varied keys."""
    drawn = heat_maps(sweep, ranking, axes)
    return f"{drawn}<p class='note'>{escape(axes_caption(axes))}</p>" if drawn else ""


def heat_maps(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """Both numbers over rows x series, one pair of maps a panel; "" without two varied keys."""
    if axes.series is None or axes.rows is None or not ranking.standings:
        return ""
    cells = [*(trial.cell for trial in sweep.trials), *(one.cell for one in sweep.skipped)]
    panels = chosen(cells, axes.panels, axes, ranking, _PANELS)
    rest = len(axes.grouped(cells, axes.panels)) - len(panels)
    maps = {
        measure: [
            _heat_map(sweep, ranking, axes, group, measure, title)
            for title, group in panels.items()
        ]
        for measure in MEASURES
    }
    more = ""
    if rest:
        more = (
            f"<p class='note'>The {len(panels)} panels that hold the best cells are shown; "
            f"{rest} more are in results.csv.</p>"
        )
    if len(panels) == 1:
        return f'<div class="maps">{"".join(one for some in maps.values() for one in some)}</div>'
    return (
        "".join(
            f'<h3>{_title(measure)}</h3><div class="maps">{"".join(some)}</div>'
            for measure, some in maps.items()
        )
        + more
    )


def _title(measure: str) -> str:
    return NAMES[measure][0].upper() + NAMES[measure][1:]


def _heat_map(
    sweep: Sweep, ranking: Ranking, axes: Axes, group: list, measure: str, title: str
) -> str:
    assert axes.series is not None and axes.rows is not None
    columns, rows = axes.values[axes.series], axes.values[axes.rows]
    values = {
        (place(rows, s.cell.get(axes.rows)), place(columns, s.cell.get(axes.series))): s
        for s in ranking.standings
        if s.cell in group
    }
    lowest = ranking.standings[ranking.order(measure)[0]]
    numbers = [standing.value(measure) for standing in ranking.standings]
    digits = common_digits([standing.error(measure) for standing in ranking.standings])
    why = _reasons(sweep, axes, group)
    body = ""
    for i, row in enumerate(rows):
        tds = []
        for j in range(len(columns)):
            standing = values.get((i, j))
            if standing is None:
                tds.append(f'<td class="empty">{escape(why.get((i, j), "not trained"))}</td>')
                continue
            share = _share(standing.value(measure), numbers, is_log=measure == MEASURES[0])
            mark = ' class="first"' if standing is lowest else ""
            number, error = standing.value(measure), standing.error(measure)
            many = number_with_error(number, error)[0]
            shown = many if digits is None else signed(number, digits)
            tds.append(f"<td{mark} style='{shade(share)}'>{shown}</td>")
        body += f"<tr><th scope='row'>{escape(part(axes.rows, row))}</th>{''.join(tds)}</tr>"
    heads = "".join(f"<th scope='col'>{escape(part(axes.series, v))}</th>" for v in columns)
    caption = title or _title(measure)
    return (
        f"<figure><table class='heat'><caption>{escape(caption)}</caption>"
        f"<thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></figure>"
    )


def _reasons(sweep: Sweep, axes: Axes, group: list) -> dict[tuple[int, int], str]:
    """One word for each cell without a number."""
    assert axes.series is not None and axes.rows is not None
    words = {}
    ended = [
        (trial.cell, {"done": "not ranked"}.get(trial.status, trial.status))
        for trial in sweep.trials
    ]
    for cell, word in [*ended, *((one.cell, "skipped") for one in sweep.skipped)]:
        if cell in group:
            words[axes.place(axes.rows, cell), axes.place(axes.series, cell)] = word
    return words


def level_map(ranking: Ranking) -> str:
    """How far above the lowest cell each cell is at each common level, in per cent."""
    standings, levels = ranking.standings[:_LEVEL_ROWS], ranking.levels
    curves = np.stack([standing.curve(levels) for standing in ranking.standings])
    above = 100 * (curves / curves.min(axis=0) - 1)
    top = max(float(np.log10(1 + above[: len(standings)]).max()), log10(2))  # less than 1 %: alike
    body = ""
    for standing, row in zip(standings, above, strict=False):
        tds = "".join(
            f"<td{' class=first' if value == 0 else ''} "
            f"style='{shade(1 - log10(1 + value) / top)}'>{_per_cent(value)}</td>"
            for value in row
        )
        body += f"<tr><th scope='row'>{escape(standing.label)}</th>{tds}</tr>"
    heads = "".join(f"<th scope='col'>{signed(level)}</th>" for level in levels)
    is_part = len(standings) < len(ranking.standings)
    more = f" The {len(standings)} best cells." if is_part else ""
    return (
        "<figure class='scroll'><table class='heat levels'><caption>x0-error above the lowest at "
        "each log-SNR level, in per cent (0: the lowest; \u00d712: twelve times it). Noisy on the "
        f"left, nearly clean on the right.{more}</caption><thead><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></figure>"
    )


def _per_cent(value: float) -> str:
    if value >= 1000:
        return f"\u00d7{1 + value / 100:,.0f}"
    return f"{value:.0f}" if value >= 9.95 or value == 0 else f"{value:.1f}"


def _share(value: float, values: Sequence[float], *, is_log: bool) -> float:
    """1 for the lowest of the values, 0 for the highest."""
    numbers = [v if is_log else log10(max(v, 1e-300)) for v in (value, *values)]
    low, high = min(numbers), max(numbers)
    return 1.0 if high == low else (high - numbers[0]) / (high - low)


def shade(share: float) -> str:
    """Background and text of a heat map cell: from pale (0) to deep blue (1, the best)."""
    share = min(max(share, 0.0), 1.0)
    rgb = [round(a + (b - a) * share) for a, b in zip(_PALE, _DEEP, strict=True)]
    ink = "#fff" if luminance(rgb) < _MIDDLE else "#000"
    return f"background:rgb({','.join(map(str, rgb))});color:{ink}"


def luminance(rgb: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour of bytes (WCAG 2.2)."""
    parts = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def axes_caption(axes: Axes) -> str:
    """What rows and columns of the heat maps are."""
    assert axes.series is not None and axes.rows is not None
    return (
        f"Rows: {spoken(axes.rows)}; columns: {spoken(axes.series)}. Darker is better; the lowest "
        "of all cells is framed."
    )
