"""Charts of a report as Vega-Lite specifications, made with altair.

Colours and fonts are not in them: the page draws each with the theme that is shown. Every series
has a colour and a symbol; a click in the legend singles it out, with Shift several.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ddpm.metrics import MEASURES
from ddpm.report.best_samples import TITLES, Spot
from ddpm.report.costs import Cost, cost, front, gpus
from ddpm.report.labels import NAMES, Axes, Cell, cell_label, interval_text, part, with_error
from ddpm.report.ranking import Ranking
from ddpm.report.reading import SweepResults, TrialResult
from ddpm.runs import storage

if TYPE_CHECKING:
    import altair as alt

Spec = dict[str, Any]
Row = dict[str, Any]
Kept = dict[str, Sequence[Row]]  # the data of a chart by name

GAUSSIAN, MEMORISATION = "Gaussian fit", "memorisation"
FACETS = 12  # charts side by side; of more, those that hold the best cells
LOSSES = {"n_loss": "noise loss", "i_loss": "image loss", "v_loss": "velocity loss"}
COMPARABLE = {f"val_{measure}": NAMES[measure] for measure in MEASURES}
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_LOGARITHMIC = 4  # positive numbers whose ratio is larger are drawn on a logarithmic scale
_WIDE = 8  # the same of costs
_BARS, _BANDS = 60, 4  # cells, curves of a chart: intervals of more would hide each other
_POINTS = 120  # of a learning curve
_INTERVALS = 40  # cells whose intervals are drawn beside each other
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))


@cache
def vega() -> str:
    """The JavaScript that draws the charts, defining `vegaEmbed`; no network is asked.

    Putting it together takes seconds, so it is kept in the user's cache folder.
    """
    import os

    import vl_convert

    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm"
    cached /= f"vega-{vl_convert.__version__}.js"
    try:
        return cached.read_text()
    except OSError:
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    try:
        storage.make_folder(cached.parent)
        storage.write_text(cached, script)
    except OSError:
        pass  # a home that cannot be written: the next report makes it again
    return script


def intervals(ranking: Ranking) -> Spec:
    """Both measures of the best cells with their intervals, a row a cell."""
    import altair as alt

    kept: Kept = {}
    shown = ranking.standings[:_INTERVALS]
    labels = [standing.label for standing in shown]
    charts = []
    for measure in MEASURES:
        rows = []
        for one in shown:
            value, error = one.value(measure), one.error(measure)
            error = error if isfinite(error) else 0.0
            rows.append({"cell": one.label, "value": value, "low": value - error,
                         "high": value + error, "tip": with_error(value, error)})  # fmt: skip
        lows = [row["low"] for row in rows]
        is_log = measure != MEASURES[0] and min(lows) > 0
        base = alt.Chart(_data(kept, rows)).encode(
            y=alt.Y("cell:N", sort=labels, title=None, axis=None if charts else alt.Axis()),
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("tip:N", title=NAMES[measure])],
        )
        scale = alt.Scale(
            type="log" if is_log else "linear",
            zero=alt.Undefined if is_log else False,
            nice=False,
            padding=8,
        )
        x = alt.X("low:Q", title=NAMES[measure], scale=scale)
        bars = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
        points = base.mark_point(filled=True, size=50, opacity=1).encode(x=alt.X("value:Q"))
        charts.append(alt.layer(bars, points).properties(width=330, height=alt.Step(17)))
    return _spec(kept, alt.hconcat(*charts, spacing=18))


def x0_curves(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Spec:
    """MSE of the x0 estimate over log SNR with the reference lines, one chart a facet.

    Dashed, on grey: levels that not all cells share.
    """
    import altair as alt

    kept: Kept = {}
    low, high = ranking.levels[0], ranking.levels[-1]
    groups = chosen([s.cell for s in ranking.standings], axes.facets, axes, ranking)
    rows = [
        {"panel": title, "series": axes.series_name(one.cell), "level": level, "mse": float(mse),
         "cell": one.label, "is_line": False}
        for title, cells in groups.items() for one in ranking.standings if one.cell in cells
        for level, mse in zip(one.levels, one.curve(one.levels), strict=True)
    ]  # fmt: skip
    levels, lowest = [row["level"] for row in rows], min(row["mse"] for row in rows)
    for name, curve in _references(sweep):
        rows += [
            {"panel": title, "series": name, "level": level, "mse": value, "cell": name,
             "is_line": True}
            for title in groups for level, value in curve
            if min(levels) <= level <= max(levels) and value >= lowest / 2
        ]  # fmt: skip
    names = _series([one.cell for one in ranking.standings], axes)
    names += [name for name, _ in _references(sweep)]
    pick = _picked(names)
    base = alt.Chart().encode(
        x=alt.X("level:Q", title="log SNR (noisy \u2192 clean)", scale=alt.Scale(nice=False)),
        y=alt.Y("mse:Q", title="MSE of the x0 estimate", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(format="~g")),
        color=_colour(names),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
        tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("level:Q", title="log SNR"),
                 alt.Tooltip("mse:Q", title="MSE", format=".4g")],
    )  # fmt: skip
    inside = f"datum.level >= {low} && datum.level <= {high}"
    within, below, above = (
        base.mark_line(strokeDash=dash).transform_filter(f"!datum.is_line && {where}")
        for where, dash in (
            (f"({inside})", [1, 0]),
            (f"datum.level <= {low}", [4, 4]),
            (f"datum.level >= {high}", [4, 4]),
        )
    )
    lines = base.mark_line(strokeWidth=1.2, strokeDash=[8, 3]).transform_filter("datum.is_line")
    points = (
        base.mark_point(filled=True, size=26)
        .encode(shape=_shape(names))
        .transform_filter("!datum.is_line")
    )
    edges = [(min(levels), low), (high, max(levels))]
    grey = _data(kept, [{"from": a, "to": b} for a, b in edges if b > a])
    outside = alt.Chart(grey).mark_rect(opacity=0.09, color="gray").encode(x="from:Q", x2="to:Q")
    layers = [outside, lines, within, below, above, points]
    chart = (
        alt.layer(*layers, data=_data(kept, rows))
        .add_params(pick)
        .properties(width=290, height=220)
    )
    return _spec(kept, _facets(chart, list(groups)))


def over_cost(ranking: Ranking, axes: Axes) -> Spec | None:
    """Both measures over what a trial cost, with the Pareto front; None where no cost is known."""
    import altair as alt

    kept: Kept = {}
    standings, seconds = known_costs(ranking)
    if len(standings) < 2:
        return None
    size, unit = next((u for u in reversed(_UNITS) if max(seconds) >= 2 * u[0]), _UNITS[0])
    title = f"{cost_of(ranking).unit.removesuffix('-seconds')} time per trial ({unit})"
    is_wide = max(seconds) > _WIDE * min(seconds) > 0
    x = alt.X("cost:Q", title=title, scale=alt.Scale(type="log" if is_wide else "linear"))
    names = _series([one.cell for one in standings], axes)
    pick = _picked(names)
    charts = []
    for measure in MEASURES:
        rows = []
        for one, spent in zip(standings, seconds, strict=True):
            value, error = one.value(measure), one.error(measure)
            error = error if isfinite(error) else 0.0
            rows.append({"cell": one.label, "series": axes.series_name(one.cell),
                         "cost": spent / size, "value": value, "low": value - error,
                         "high": value + error, "tip": with_error(value, error)})  # fmt: skip
        y = _y(NAMES[measure], [row["low"] for row in rows] + [row["high"] for row in rows],
               may_be_log=measure != MEASURES[0])  # fmt: skip
        base = alt.Chart(_data(kept, rows)).encode(
            x=x, color=_colour(names), opacity=alt.condition(pick, alt.value(1), alt.value(0.08))
        )
        points = base.mark_point(filled=True, size=55).encode(
            y=y("value:Q"),
            shape=_shape(names),
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("tip:N", title=NAMES[measure]),
                     alt.Tooltip("cost:Q", title=title, format=".3g")],
        )  # fmt: skip
        best = front(seconds, [row["value"] for row in rows])
        steps = [{k: rows[place][k] for k in ("cost", "value")} for place in best]
        steps.append({"cost": max(seconds) / size, "value": steps[-1]["value"]})
        stairs = (
            alt.Chart(_data(kept, steps))
            .mark_line(interpolate="step-after", color="gray", strokeWidth=1.2)
            .encode(x=x, y=y("value:Q"))
        )
        bars = base.mark_rule().encode(y=y("low:Q"), y2="high:Q")
        layers = [stairs, *([bars] if len(rows) <= _BARS else []), points]
        charts.append(alt.layer(*layers).properties(width=400, height=260))
    return _spec(kept, _with_params(alt.hconcat(*charts), pick))


def sampling_curves(
    spots: Sequence[Spot], names: Sequence[str], ranking: Ranking, axes: Axes
) -> Spec:
    """Each quality of samples over network calls per image, a row of facets a quality."""
    import altair as alt

    kept: Kept = {}
    cells = list({id(spot.cell): spot.cell for spot in spots}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    methods = list(dict.fromkeys(spot.method for spot in spots))
    series = _series(cells, axes)
    pick, charts = _picked(series), []
    for name in names:
        rows = [
            {"panel": ", ".join(filter(None, [title, spot.method if len(methods) > 1 else ""])),
             "series": axes.series_name(spot.cell), "cell": spot.label,
             "calls": spot.evaluations, "value": found.value, "low": found.low, "high": found.high,
             "tip": f"{spot.method}, {spot.num_steps} steps: {interval_text(found)}"}
            for title, group in groups.items() for spot in spots
            if spot.cell in group and (found := spot.qualities.get(name)) is not None
        ]  # fmt: skip
        y = _y(TITLES[name], [row["low"] for row in rows] + [row["high"] for row in rows])
        calls = alt.X("calls:Q", title="network calls per image", scale=alt.Scale(type="log", nice=False),
                      axis=alt.Axis(format="~g"))  # fmt: skip
        base = alt.Chart().encode(
            x=calls,
            color=_colour(series),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
            detail="cell:N",
        )
        points = base.mark_point(filled=True, size=30).encode(
            y=y("value:Q"),
            shape=_shape(series),
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("tip:N", title=TITLES[name])],
        )
        layers = [
            base.mark_line().encode(y=y("value:Q")),
            base.mark_rule().encode(y=y("low:Q"), y2="high:Q"),
            points,
        ]
        chart = alt.layer(*layers, data=_data(kept, rows)).properties(width=290, height=190)
        charts.append(_facets(chart, list(dict.fromkeys(row["panel"] for row in rows))))
    return _spec(kept, _with_params(alt.vconcat(*charts), pick))


def learning_curves(
    sweep: SweepResults, ranking: Ranking, axes: Axes, titles: Mapping[str, str]
) -> Spec | None:
    """Measures over optimizer steps, wall time or compute, whichever is picked.

    Lines are means over seeds, bands reach from the lowest to the highest seed.
    """
    import altair as alt

    kept: Kept = {}
    having = [trial for trial in sweep.trials if any(name in trial.metrics for name in titles)]
    cells = list({trial.key: trial.cell for trial in having}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    panels = {id(cell): title for title, group in groups.items() for cell in group}
    found: dict[str, list[Row]] = {
        name: [
            row | {"panel": panels[id(cell)], "series": axes.series_name(cell),
                   "cell": cell_label(cell, tuple(axes.values))}
            for cell in cells if id(cell) in panels
            for row in learning_curve([t for t in having if t.cell == cell], name)
        ]
        for name in titles
    }  # fmt: skip
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return None
    every = [row for rows in found.values() for row in rows]
    computed = "GPU" if any(map(gpus, sweep.trials)) else "core"
    over, unit = {"optimizer steps": "steps"}, {"optimizer steps": 1}
    for kind, words in (("seconds", "wall time"), ("compute", f"{computed} time")):
        if longest := max((row.get(kind) or 0 for row in every), default=0):
            size, name = next((u for u in reversed(_UNITS) if longest >= 2 * u[0]), _UNITS[0])
            over[f"{words} ({name})"], unit[f"{words} ({name})"] = kind, size
    names = _series(cells, axes)
    pick = _picked(names)
    axis = alt.param(name="over", value="optimizer steps")
    if len(over) > 1:
        radio = alt.binding_radio(options=list(over), name="over ")
        axis = alt.param(name="over", value="optimizer steps", bind=radio)
    place = " : ".join(f"over == '{k}' ? datum.{kind} / {unit[k]}" for k, kind in over.items())
    charts = []
    for name, rows in found.items():
        y = _y(titles[name], [row["mean"] for row in rows], may_be_log=not name.endswith("_log10_mse"))  # fmt: skip
        base = alt.Chart().transform_calculate(x=f"{place} : null").encode(
            x=alt.X("x:Q", title=None if len(over) > 1 else "optimizer steps"),
            color=_colour(names),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
            detail="cell:N",
            tooltip=[alt.Tooltip("cell:N"), alt.Tooltip("steps:Q", title="optimizer steps"),
                     alt.Tooltip("mean:Q", title=titles[name], format=".4g")],
        )  # fmt: skip
        band = base.mark_area().encode(
            y=y("low:Q"), y2="high:Q", opacity=alt.condition(pick, alt.value(0.16), alt.value(0))
        )
        marks = base.mark_point(filled=True, size=26).encode(y=y("mean:Q"), shape=_shape(names))
        marks = marks.transform_filter("datum.is_marked")
        layers = [base.mark_line().encode(y=y("mean:Q")), marks]
        if len(names) <= _BANDS:
            layers.insert(0, band)
        chart = alt.layer(*layers, data=_data(kept, rows)).properties(width=290, height=170)
        charts.append(_facets(chart, [title for title in groups if any(r["panel"] == title for r in rows)]))  # fmt: skip
    return _spec(kept, _with_params(alt.vconcat(*charts), pick, axis))


def learning_curve(trials: Sequence[TrialResult], name: str) -> list[Row]:
    """A measure of one cell over training, a row a logged step that all its seeds have.

    Neighbours are averaged where there are more than `_POINTS` rows.
    """
    columns = [_columns(t, name) for t in trials if name in t.metrics and "step" in t.metrics]
    if not columns:
        return []
    steps = sorted(set.intersection(*({*one["steps"]} for one in columns)))
    if len(steps) < 2:
        return []
    kinds = set.intersection(*(set(one) for one in columns))
    rows = [np.searchsorted(one["steps"], steps) for one in columns]
    parts = np.array_split(np.arange(len(steps)), min(len(steps), _POINTS))
    starts, counts = [part[0] for part in parts], [len(part) for part in parts]
    means = {
        kind: np.add.reduceat(
            np.stack([c[kind][r] for c, r in zip(columns, rows, strict=True)]), starts, axis=1
        )
        / counts  # fmt: skip
        for kind in kinds
    }
    y = means.pop("y")
    every = max(1, len(parts) // 7)
    return [
        {kind: float(values[:, k].mean()) for kind, values in means.items()}
        | {"mean": float(y[:, k].mean()), "low": float(y[:, k].min()), "high": float(y[:, k].max()),
           "is_marked": k % every == every // 2}
        for k in range(len(parts))
    ]  # fmt: skip


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


def chosen(
    cells: Sequence[Cell], keys: Sequence[str], axes: Axes, ranking: Ranking, most: int = FACETS
) -> dict[str, list[Cell]]:
    """Groups of cells that differ in `keys`, in the grid's order; of more than `most`, those that
    hold the best cells.
    """
    groups = axes.grouped(cells, keys)
    if len(groups) <= most:
        return groups
    titles = {cell_label(one.cell, keys): None for one in ranking.standings}
    kept = set(list({**titles, **dict.fromkeys(groups)})[:most])
    return {title: group for title, group in groups.items() if title in kept}


def known_costs(ranking: Ranking) -> tuple[list[Any], list[float]]:
    """The cells whose cost is known, and their seconds of compute per trial."""
    costs = [cost(list(one.trials.values())).compute_seconds for one in ranking.standings]
    known = [(s, c) for s, c in zip(ranking.standings, costs, strict=True) if c is not None]
    return [standing for standing, _ in known], [seconds for _, seconds in known]


def cost_of(ranking: Ranking) -> Cost:
    """The cost of the first cell, whose unit is that of all."""
    return cost(list(ranking.standings[0].trials.values()))


def _references(sweep: SweepResults) -> list[tuple[str, list[tuple[int, float]]]]:
    lines = sweep.references
    if lines is None:
        return []
    both = ((GAUSSIAN, lines.gaussian), (MEMORISATION, lines.memorisation))
    return [(name, list(zip(lines.levels, values, strict=True))) for name, values in both if values]


def _series(cells: Iterable[Cell], axes: Axes) -> list[str]:
    """The names of the curves in the grid's order, the same colours in every chart."""
    if axes.series is None:
        return list(dict.fromkeys(map(axes.series_name, cells)))
    return [part(axes.series, value) for value in axes.values[axes.series]]


def _picked(names: Sequence[str]) -> "alt.Parameter":
    """The series that are shown: a click in the legend, Shift for several."""
    import altair as alt

    return alt.selection_point(name="picked", fields=["series"], bind="legend")


def _colour(names: Sequence[str]) -> "alt.Color":
    import altair as alt

    return alt.Color("series:N", title=None, scale=alt.Scale(domain=names), legend=None if len(names) < 2 else alt.Legend(orient="top", symbolOpacity=1))  # fmt: skip


def _shape(names: Sequence[str]) -> "alt.Shape":
    """The second sign beside colour."""
    import altair as alt

    symbols = [_SYMBOLS[k % len(_SYMBOLS)] for k in range(len(names))]
    return alt.Shape("series:N", title=None, scale=alt.Scale(domain=names, range=symbols), legend=None if len(names) < 2 else alt.Legend(orient="top", symbolOpacity=1))  # fmt: skip


def _y(title: str, values: Sequence[float], *, may_be_log: bool = True) -> Any:
    """The y channel of numbers; on a logarithmic scale where their ratio is large."""
    import altair as alt

    finite = [value for value in values if isfinite(value)]
    is_log = may_be_log and min(finite, default=0) > 0 and max(finite) > _LOGARITHMIC * min(finite)
    scale = alt.Scale(
        type="log" if is_log else "linear", zero=alt.Undefined if is_log else False, nice=not is_log
    )
    return lambda field: alt.Y(field, title=title, scale=scale, axis=alt.Axis(format="~g"))


def _facets(chart: Any, titles: Sequence[str]) -> Any:
    """Charts side by side, one a value of `panel`; the chart itself where there is one panel."""
    import altair as alt

    if len(titles) < 2:
        return chart
    header = alt.Header(title=None)
    columns = len(titles) if len(titles) in (2, 4) else 3
    return chart.facet(
        alt.Facet("panel:N", sort=list(titles), header=header), columns=min(columns, 3)
    )


def _with_params(charts: Any, *params: Any) -> Any:
    """Charts beside each other that share a parameter, such as one legend for all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # altair asks whether sharing is meant
        return charts.add_params(*params)


def _data(kept: Kept, rows: Sequence[Row]) -> "alt.NamedData":
    """A name for rows, kept beside the chart: altair checks every value that it is given."""
    import altair as alt

    name = f"data-{len(kept)}"
    kept[name] = rows
    return alt.NamedData(name=name)


def _spec(kept: Kept, chart: Any) -> Spec:
    found = chart.to_dict(validate=False)  # which takes seconds; a test does it
    for key in ("$schema", "config"):  # the page knows what it draws with, and has its own colours
        found.pop(key, None)
    return {**found, "datasets": kept}
