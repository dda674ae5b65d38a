"""The ranking table and the heat maps as HTML tables, to be read aloud, copied and printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import ceil, isfinite, log10

import numpy as np

from ddpm.metrics import MEASURES
from ddpm.report import charts as ticks
from ddpm.report.charts import (
    Frame,
    LineSeries,
    chosen,
    facets,
    first_each,
    in_order,
    legend,
    line_chart,
    table,
    whisker,
    y_range,
)
from ddpm.report.costs import Cost, compute_seconds, cost, front, gpus
from ddpm.report.ranking import (
    Axes,
    Cell,
    Ranking,
    Standing,
    aligned,
    common_digits,
    duration,
    energy,
    number_with_error,
    part,
    place_of,
    signed,
    size,
    spoken,
    with_error,
)
from ddpm.report.reading import Lines, SweepResults, TrialResult
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


def heat_maps_section(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """The maps and what their rows and columns are; "" without two varied keys."""
    drawn = heat_maps(sweep, ranking, axes)
    return f"{drawn}<p class='note'>{escape(axes_caption(axes))}</p>" if drawn else ""


def heat_maps(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
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
    sweep: SweepResults, ranking: Ranking, axes: Axes, group: list, measure: str, title: str
) -> str:
    assert axes.series is not None and axes.rows is not None
    columns, rows = axes.values[axes.series], axes.values[axes.rows]
    values = {
        (place_of(rows, s.cell.get(axes.rows)), place_of(columns, s.cell.get(axes.series))): s
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


def _reasons(sweep: SweepResults, axes: Axes, group: list) -> dict[tuple[int, int], str]:
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


# --------
# The x0-error over log SNR of every cell, with the two reference lines of the data.

GAUSSIAN, MEMORISATION = "Gaussian fit", "memorisation"


def x0_section(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """The curves, what they are, and by how much each cell is above the lowest at each level."""
    if not ranking.standings:
        return ""
    lines = (
        f" <em>{GAUSSIAN}</em> is the best linear estimate from the training data's mean "
        "and covariance, on the same validation pairs: a network above it has learned less than "
        "two moments. "
        f"<em>{MEMORISATION.capitalize()}</em> is the ideal denoiser that only "
        f"remembers {sweep.references.num_train:,} training images, on training pairs: no network "
        "that generalises reaches it. Neither is told the class."
        if sweep.references is not None
        else ""
    )
    solid = (
        " Solid: the levels all cells share, which alone are averaged. Dashed, on grey: levels "
        "that some schedule does not reach."
        if sweep.is_sweep
        else ""
    )
    note = (
        "<p class='note'>Mean squared error of the network's estimate of the clean image, on fixed "
        "(validation image, noise) pairs, in units where pixels lie in [\u22121, 1]."
        f"{solid}{lines}</p>"
    )
    below = level_map(ranking) if len(ranking.standings) > 1 else ""
    return f"{note}{x0_curves(sweep, ranking, axes)}{below}"


def x0_curves(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """MSE of the x0 estimate over log SNR, one chart a facet, with the two reference lines."""
    cells = [standing.cell for standing in ranking.standings]
    groups = chosen(cells, axes.facets, axes, ranking)
    drawn = {
        title: [_error_series(one, axes) for one in ranking.standings if one.cell in group]
        for title, group in groups.items()
    }
    levels = [x for series in drawn.values() for one in series for x in one.x]
    x_range = (min(levels), max(levels))
    edges = y_range([one for series in drawn.values() for one in series])
    lines = [_inside(line, x_range, edges[0]) for line in _reference_series(sweep.references)]
    frame = Frame(
        x_range=x_range,
        y_range=edges,
        x_title="log SNR (noisy \u2192 clean)",
        y_title="MSE of the x0 estimate",
        solid=(ranking.levels[0], ranking.levels[-1]),
    )
    charts = {
        title: line_chart(
            [*lines, *in_order(series)], frame, f"x0-error over log SNR, {title or 'all'}"
        )
        for title, series in drawn.items()
    }
    columns = 2 if len(charts) in (2, 4) else 3
    named = legend([*first_each(drawn.values()), *lines])
    return named + facets(charts, columns, len(axes.grouped(cells, axes.facets)))


def _error_series(standing: Standing, axes: Axes) -> LineSeries:
    values = standing.curve(standing.levels)
    tips = [
        f"{standing.label}\nlog SNR {signed(x)}: MSE {y:.4g}"
        for x, y in zip(standing.levels, values, strict=True)
    ]
    return LineSeries(
        name=axes.series_name(standing.cell),
        x=standing.levels,
        y=list(values),
        style=axes.style(standing.cell),
        tips=tips,
    )


def _reference_series(lines: Lines | None) -> list[LineSeries]:
    if lines is None:
        return []
    curves = ((GAUSSIAN, lines.gaussian, "a"), (MEMORISATION, lines.memorisation, "b"))
    return [
        LineSeries(name=name, x=lines.levels, y=values, style=style, has_markers=False)
        for name, values, style in curves
        if values is not None
    ]


def _inside(series: LineSeries, x_range: tuple[float, float], lowest: float) -> LineSeries:
    """The part of a falling reference line that the charts show."""
    below = [k for k, y in enumerate(series.y) if y < lowest]
    last = below[0] if below else len(series.y)
    kept = [k for k, x in enumerate(series.x) if x_range[0] <= x <= x_range[1] and k <= last]
    return LineSeries(
        name=series.name,
        x=_at(series.x, kept),
        y=_at(series.y, kept),
        style=series.style,
        has_markers=False,
    )


def _at(values: Sequence[float], places: Sequence[int]) -> list[float]:
    return [values[place] for place in places]


# --------
# What a training did over time: its measures over optimizer steps, wall time and compute.

_POINTS = 120
_MARKS = 7
_BANDS = 4  # curves of a chart that have bands; those of more would hide each other
_COMPARABLE = tuple(f"val_{measure}" for measure in MEASURES)
_LOSSES = {"n_loss": "noise loss", "i_loss": "image loss", "v_loss": "velocity loss"}
_TITLES = _LOSSES | {f"val_{measure}": NAMES[measure] for measure in MEASURES}
_IS_LOG = {name: name != _COMPARABLE[0] for name in _TITLES}
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))


@dataclass(frozen=True, kw_only=True)
class LearningCurve:
    """A measure of one cell over training: mean, least and largest over its seeds."""

    cell: Cell
    num_seeds: int
    x: Mapping[str, np.ndarray]  # steps, seconds, compute
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_section(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """First the measures that compare, then the losses, which do not; "" without metrics."""
    comparable = _learning_charts(sweep, ranking, axes, _COMPARABLE)
    losses = _learning_charts(sweep, ranking, axes, tuple(_LOSSES))
    if not comparable and not losses:
        return ""
    many = len({trial.seed for trial in sweep.trials}) > 1
    seeds = " Lines: mean over seeds; bands: the lowest to the highest seed." if many else ""
    read = "<p class='note'>Point at a chart, or walk in it with the arrow keys, to read it.</p>"
    if comparable:
        read += (
            "<h3>On validation images</h3><p class='note'>The numbers of the ranking while "
            f"training went on; they compare across cells.{seeds}</p>{comparable}"
        )
    if losses:
        words = (
            "<p class='note'><strong>Not comparable across schedules or timesteps</strong>: each "
            "trial averages these over its own noise levels. Use them to see whether training was "
            f"stable and had levelled off, not to rank.{'' if comparable else seeds}</p>{losses}"
        )
        read += (
            f"<details><summary>Training losses</summary>{words}</details>" if comparable else words
        )
    return read


def _learning_charts(
    sweep: SweepResults, ranking: Ranking, axes: Axes, names: Sequence[str]
) -> str:
    """One set of charts an x axis, of which the page shows one."""
    having = [trial for trial in sweep.trials if any(name in trial.metrics for name in names)]
    cells = list({trial.key: trial.cell for trial in having}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    total = len(axes.grouped(cells, axes.facets))
    drawn_cells = [cell for group in groups.values() for cell in group]
    having = [trial for trial in having if trial.cell in drawn_cells]
    curves = {name: _curves(having, name) for name in names}
    curves = {name: some for name, some in curves.items() if some}
    if not curves:
        return ""
    every = [curve for some in curves.values() for curve in some]
    kinds = {kind for curve in every for kind in curve.x}
    on_gpu = any(gpus(trial) for trial in sweep.trials)
    titles = {"steps": "optimizer steps", "seconds": "wall time"}
    titles |= {"compute": "GPU time" if on_gpu else "core time"}
    shown = [kind for kind in titles if kind in kinds]
    sets = ""
    for kind in shown:
        drawn = {
            (name, group): [
                _learning_series(c, kind, axes) for c in some if c.cell in groups[group]
            ]
            for name, some in curves.items()
            for group in groups
        }
        charts = _row_of_charts(drawn, titles[kind], is_time=kind != "steps")
        columns = len(groups) if len(groups) in (2, 4) else 3
        sets += f'<div class="by by-{kind}">{facets(charts, columns, total)}</div>'
    named = legend(first_each(drawn.values()))
    return f'<div class="switch">{_switch(shown, titles, names[0])}{named}{sets}</div>'


def _switch(shown: Sequence[str], titles: Mapping[str, str], group: str) -> str:
    """Radio buttons for the x axis: the style sheet shows the set of charts that is picked."""
    if len(shown) < 2:
        return ""
    items = "".join(
        f'<label><input type="radio" name="x-{group}" value="{kind}"'
        f"{' checked' * (kind == 'steps')}> {escape(titles[kind])}</label>"
        for kind in shown
    )
    return f'<fieldset class="axis"><legend>over</legend>{items}</fieldset>'


def _row_of_charts(
    drawn: Mapping[tuple[str, str], list[LineSeries]], title: str, *, is_time: bool
) -> dict[str, str]:
    longest = max(max(one.x) for some in drawn.values() for one in some)
    size, unit = next((u for u in reversed(_UNITS) if longest >= 2 * u[0]), _UNITS[0])
    size = size if is_time else 1
    charts = {}
    for (name, group), series in drawn.items():
        every = [one for key, some in drawn.items() if key[0] == name for one in some]
        if not series:
            continue
        values = [v for one in every for v in (*one.low, *one.high, *one.y)]
        frame = Frame(
            x_range=(0, longest / size),
            y_range=ticks.decades(values) if _IS_LOG[name] else ticks.around(values),
            y_is_log=_IS_LOG[name],
            x_title=f"{title} ({unit})" if is_time else title,
            y_title=_TITLES[name],
            height=220,
        )
        label = f"{_TITLES[name]}, {group}" if group else _TITLES[name]
        if len(series) > _BANDS:
            series = [replace(one, low=(), high=()) for one in series]
        scaled = [replace(one, x=[x / size for x in one.x]) for one in in_order(series)]
        charts[label] = line_chart(scaled, frame, f"{label}, over {title}")
    return charts


def _curves(having: Sequence[TrialResult], name: str) -> list[LearningCurve]:
    trials: dict[str, list[TrialResult]] = {}
    for trial in having:
        if len(trial.metrics.get("step", ())) > 1 and name in trial.metrics:
            trials.setdefault(trial.key, []).append(trial)
    return [curve for some in trials.values() if (curve := _learning_curve(some, name)) is not None]


def _learning_curve(trials: Sequence[TrialResult], name: str) -> LearningCurve | None:
    """The rows that all seeds of a cell have; None where they are fewer than two."""
    columns = [_columns(trial, name) for trial in trials]
    steps = sorted(set.intersection(*({*one["steps"]} for one in columns)))
    if len(steps) < 2:
        return None
    kinds = set.intersection(*(set(one) for one in columns))
    rows = [np.searchsorted(one["steps"], steps) for one in columns]
    stacked = {
        kind: np.stack([one[kind][row] for one, row in zip(columns, rows, strict=True)])
        for kind in kinds
    }
    parts = np.array_split(np.arange(len(steps)), min(len(steps), _POINTS))
    y = _means(stacked.pop("y"), parts)
    return LearningCurve(
        cell=trials[0].cell,
        num_seeds=len(trials),
        x={kind: _means(values, parts).mean(axis=0) for kind, values in stacked.items()},
        mean=y.mean(axis=0),
        low=y.min(axis=0),
        high=y.max(axis=0),
    )


def _columns(trial: TrialResult, name: str) -> dict[str, np.ndarray]:
    """steps, seconds, compute and y of a trial's rows that have a finite number."""
    metrics = trial.metrics
    found = {"steps": metrics["step"], "y": metrics[name]}
    if "time/seconds" in metrics:
        found["seconds"] = np.nancumsum(metrics["time/seconds"])
        if gpus(trial):
            found["compute"] = found["seconds"] * gpus(trial)
        elif "time/core_seconds" in metrics:
            found["compute"] = np.nancumsum(metrics["time/core_seconds"])
    keep = np.isfinite(metrics[name])
    return {kind: values[keep] for kind, values in found.items()}


def _means(rows: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Means of neighbours, (seeds, parts), so that noise is smoothed evenly."""
    starts, counts = [part[0] for part in parts], [len(part) for part in parts]
    return np.add.reduceat(rows, starts, axis=1) / counts


def _learning_series(curve: LearningCurve, kind: str, axes: Axes) -> LineSeries:
    several = curve.num_seeds > 1
    return LineSeries(
        name=axes.series_name(curve.cell),
        x=list(curve.x.get(kind, curve.x["steps"])),
        y=list(curve.mean),
        low=list(curve.low) if several else (),
        high=list(curve.high) if several else (),
        is_band=True,
        style=axes.style(curve.cell),
        mark_every=max(1, len(curve.mean) // _MARKS),
    )


# --------
# Quality over cost: what the sweep took in all, and the cells on the Pareto front.

FRONT = "Pareto front"
_BARS = 60  # intervals of more cells would hide each other
_WIDE = 8  # costs beyond this ratio are drawn on a logarithmic scale
_ALIKE = 1.1  # costs within this ratio are not told apart


def cost_section(sweep: SweepResults, ranking: Ranking, axes: Axes) -> str:
    """Totals, both measures over the training cost, the front in words, and a row a cell."""
    if not ranking.standings or not sweep.is_sweep:
        return ""
    return f"<p>{escape(total(sweep))}</p>{_fronts(ranking, axes)}{_table(ranking)}"


def total(sweep: SweepResults) -> str:
    """What the sweep took: `27 trainings took 3.4 min of core time in all, 7.1 s to 8.0 s each.`"""
    known = [(t, s) for t in sweep.trials if (s := compute_seconds(t)) is not None]
    if not known:
        return "What the trainings took was not recorded."
    unit = cost([trial for trial, _ in known]).unit.removesuffix("-seconds")
    lost = sum(seconds for trial, seconds in known if trial.status != "done")
    spent = sum(seconds for _, seconds in known)
    more = f"; {duration(lost)} of it went into trials that did not finish" if lost else ""
    known.sort(key=lambda one: one[1])
    ends = [duration(seconds) for seconds in (known[0][1], known[-1][1])]
    each = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    took = f"{len(known):,} trainings took {duration(spent)} of {unit} time in all, {each} each"
    return f"{took}{more}."


def _fronts(ranking: Ranking, axes: Axes) -> str:
    standings, seconds = _known(ranking)
    if len(standings) < 2:
        return ""
    size, name = next((u for u in reversed(_UNITS) if max(seconds) >= 2 * u[0]), _UNITS[0])
    unit = f"{_kind(ranking)} time per trial ({name})"
    charts, words, drawn = {}, [], []
    for measure in MEASURES:
        x = [one / size for one in seconds]
        values = [standing.value(measure) for standing in standings]
        best = front(seconds, values)
        series = [*_points(standings, x, measure, unit, axes), _line(best, x, values)]
        drawn.append(series)
        charts[NAMES[measure][0].upper() + NAMES[measure][1:]] = line_chart(
            series, _frame(series, unit, measure), f"{NAMES[measure]} over cost"
        )
        named = [_named(standings[k], seconds[k], measure) for k in best]
        said = ", ".join(f"<strong>{escape(one)}</strong> {for_what}" for one, for_what in named)
        words.append((NAMES[measure], said))
    ratio = max(seconds) / max(min(seconds), 1e-12)
    alike = (
        f"All cells cost nearly the same (within {max(1, ceil(100 * (ratio - 1)))} %, which may "
        "be the machine's), so the front says little here. "
        if ratio < _ALIKE
        else ""
    )
    bars = "Bars: the intervals of the ranking. " if len(standings) <= _BARS else ""
    note = (
        "<p class='note'>A cell is on the front when no other is both cheaper and better. "
        f"{bars}{alike}"
        + " ".join(
            f"By <em>{escape(name)}</em>, from the cheapest: {said}." for name, said in words
        )
        + "</p>"
    )
    return legend(first_each(drawn)) + facets(charts, 2) + note


def on_front(ranking: Ranking, measure: str) -> list[tuple[str, str]]:
    """The cells on the front, from the cheapest: each with `(−1.72 for 12 s)`."""
    standings, seconds = _known(ranking)
    best = front(seconds, [standing.value(measure) for standing in standings])
    return [_named(standings[k], seconds[k], measure) for k in best]


def _known(ranking: Ranking) -> tuple[list[Standing], list[float]]:
    """The cells whose cost is known, and that cost."""
    costs = [cost(list(one.trials.values())).compute_seconds for one in ranking.standings]
    known = [(s, c) for s, c in zip(ranking.standings, costs, strict=True) if c is not None]
    return [standing for standing, _ in known], [seconds for _, seconds in known]


def _named(standing: Standing, seconds: float, measure: str) -> tuple[str, str]:
    value = number_with_error(standing.value(measure), standing.error(measure))[0]
    return standing.label, f"({value} for {duration(seconds)})"


def _kind(ranking: Ranking) -> str:
    """core or GPU, what time is counted of."""
    return cost(list(ranking.standings[0].trials.values())).unit.removesuffix("-seconds")


def _points(
    standings: Sequence[Standing], x: Sequence[float], measure: str, unit: str, axes: Axes
) -> list[LineSeries]:
    """The cells as markers with intervals, one series a colour."""
    has_bars = len(standings) <= _BARS
    groups: dict[str, list[int]] = {}
    for place, standing in enumerate(standings):
        groups.setdefault(axes.series_name(standing.cell), []).append(place)
    found = []
    for name, places in groups.items():
        some = [standings[k] for k in places]
        ends = [(s.value(measure), s.error(measure)) for s in some]
        tips = [
            f"{s.label}\n{NAMES[measure]} {with_error(value, error)}\n{unit}: {x[k]:.3g}"
            for s, k, (value, error) in zip(some, places, ends, strict=True)
        ]
        found.append(
            LineSeries(
                name=name,
                x=[x[k] for k in places],
                y=[value for value, _ in ends],
                low=[value - error for value, error in ends] if has_bars else (),
                high=[value + error for value, error in ends] if has_bars else (),
                tips=tips,
                style=axes.style(some[0].cell),
                has_line=False,
            )
        )
    return in_order(found)


def _line(best: Sequence[int], x: Sequence[float], values: Sequence[float]) -> LineSeries:
    """The front as a staircase: from each cell on it to the cost of the next."""
    xs: list[float] = []
    ys: list[float] = []
    for place in best:
        if ys:
            xs.append(x[place])
            ys.append(ys[-1])
        xs.append(x[place])
        ys.append(values[place])
    xs.append(max(x))
    ys.append(ys[-1])
    return LineSeries(name=FRONT, x=xs, y=ys, style="b", has_markers=False)


def _frame(series: Sequence[LineSeries], unit: str, measure: str) -> Frame:
    xs = [x for one in series for x in one.x]
    ys = [y for one in series for y in (*one.y, *one.low, *one.high) if isfinite(y)]
    is_wide = max(xs) > _WIDE * min(xs) > 0
    is_log = measure != MEASURES[0] and max(ys) > ticks.LOGARITHMIC * min(ys) > 0
    return Frame(
        x_range=ticks.beside(xs) if is_wide else ticks.around([0, *xs]),
        x_is_log=is_wide,
        y_range=ticks.decades(ys) if is_log else ticks.around(ys),
        y_is_log=is_log,
        x_title=unit,
        y_title=NAMES[measure],
        width=460,
        height=300,
    )


def _table(ranking: Ranking) -> str:
    head, rows = costs_of_cells(ranking)
    fold = f"What each of {len(rows)} cells took"
    return table(head, rows, numbers=range(1, len(head)), fold=fold)


def costs_of_cells(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """What each cell took, mean over its seeds and in all, in the order of the ranking: the head of
    a table and its rows, without columns that nobody has recorded.
    """
    rows = []
    for standing in ranking.standings:
        trials = list(standing.trials.values())
        one = cost(trials)
        spent = [s for t in trials if (s := compute_seconds(t)) is not None]
        speed = "\u2013" if one.images_per_s is None else f"{one.images_per_s:,.0f}"
        rows.append(
            (
                standing.label,
                str(len(trials)),
                duration(one.compute_seconds),
                duration(sum(spent) if spent else None),
                duration(one.seconds),
                speed + " packed" * one.is_packed,
                size(one.peak_memory_bytes),
                energy(one.energy_joules),
            )
        )
    kind = _kind(ranking)
    head = ("cell", "trials", f"{kind} time per trial", f"{kind} time in all", "wall time",
            "images/s", "peak memory", "energy")  # fmt: skip
    kept = [k for k in range(len(head)) if any(row[k] != "\u2013" for row in rows)]
    return [head[k] for k in kept], [[row[k] for k in kept] for row in rows]
