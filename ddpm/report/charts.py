"""Charts of a report as Vega-Lite specifications, in plain dictionaries.

Colours and fonts are not in them: the page draws each with the theme that is shown. Every series
has a colour and a symbol; a click in the legend singles it out, with Shift several. Rows stand
once, under `datasets`, and charts name them.

altair would check each specification where it is built, but copying them takes it longer than all
else of a report takes; the tests let it check every chart.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm.config import X0_MEASURES
from ddpm.report.best_samples import Spot, method
from ddpm.report.costs import front
from ddpm.report.labels import (
    TITLES,
    Axes,
    Cell,
    cell_label,
    interval_text,
    part,
    spoken,
    with_error,
)
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.reading import SweepResults, TrialResult
from ddpm.report.scaling import Law, seconds_of
from ddpm.report.tuning import Tuning
from ddpm.runs import gpus_of, storage

Spec = dict[str, Any]
Row = dict[str, Any]

GAUSSIAN, MEMORISATION = "Gaussian fit", "memorisation"
FACETS = 12  # charts side by side; of more, those that hold the best cells
LOSSES = {"n_loss": "noise loss", "i_loss": "image loss", "v_loss": "velocity loss"}
COMPARABLE = {f"val_{measure}": TITLES[measure] for measure in X0_MEASURES}
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
_LOGARITHMIC = 4  # positive numbers whose ratio is larger are drawn on a logarithmic scale
_WIDE = 8  # the same of costs
_BARS, _BANDS = 60, 4  # cells, curves of a chart: intervals of more would hide each other
_POINTS = 120  # of a learning curve
_INTERVALS = 40  # cells whose intervals are drawn beside each other
_SHORT = {"format": "~g"}  # of numbers on an axis
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))


@cache
def vega() -> str:
    """The JavaScript that draws the charts, defining `vegaEmbed`; nothing is fetched.

    Putting it together takes seconds, so it is kept in the user's cache folder.
    """
    import os
    from importlib.metadata import version

    import vl_convert

    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddpm"
    cached /= f"vega-{version('vl-convert-python')}.js"
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
    """Both measures of the best cells with their intervals, a row a cell; grey: of real images."""
    shown = ranking.standings[:_INTERVALS]
    labels = [standing.label for standing in shown]
    charts: list[Spec] = []
    datasets: dict[str, list[Row]] = {}
    for measure in ranking.measures:
        rows: list[Row] = [{"cell": one.label} | _with_interval(one, measure) for one in shown]
        is_log = measure != X0_MEASURES[0] and min(row["low"] for row in rows) > 0
        scale = _scale(is_log) | {"nice": False, "padding": 8}
        shared = {
            "y": _name("cell", sort=labels, title=None, axis=None if charts else {}),
            "tooltip": [_name("cell"), _name("tip", title=TITLES[measure])],
        }
        x = _number("low", title=TITLES[measure], scale=scale)
        bars = _layer({"type": "rule", "strokeWidth": 2}, shared, x=x, x2={"field": "high"})
        points = _layer(_point(50) | {"opacity": 1}, shared, x=_number("value"))
        datasets[measure] = rows
        layers = [bars, points]
        real = ranking.real.get(measure)
        if real is not None and not (is_log and real.high <= 0):
            lows = [row["low"] for row in rows]
            low = max(real.low, min(lows) / 2) if is_log else real.low
            datasets[f"real {measure}"] = [
                {"from": min(low, real.high), "to": real.high,
                 "tip": f"real images: {interval_text(real)}"}
            ]  # fmt: skip
            band = _layer({"type": "rect", "opacity": 0.25, "color": "gray"}, {},
                          x=x | {"field": "from"}, x2={"field": "to"},
                          tooltip=_name("tip", title=TITLES[measure]))  # fmt: skip
            layers.insert(0, band | {"data": {"name": f"real {measure}"}})
        charts.append(_chart(layers, measure, width=330, height={"step": 17}))
    return {"hconcat": charts, "spacing": 18, "datasets": datasets}


def _with_interval(one: Standing, measure: str) -> Row:
    value, error = one.value(measure), one.error(measure)
    error = error if isfinite(error) else 0.0
    low, high = value - error, value + error
    return {"value": value, "low": low, "high": high, "tip": with_error(value, error)}


def x0_curves(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Spec:
    """MSE of the x0 estimate over log SNR with the reference lines, one chart a facet.

    Dashed, on grey: levels that not all cells share.
    """
    low, high = ranking.levels[0], ranking.levels[-1]
    groups = chosen([s.cell for s in ranking.standings], axes.facets, axes, ranking)
    rows: list[Row] = [
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
    shared = {
        "x": _number("level", title="log SNR (noisy \u2192 clean)", scale={"nice": False}),
        "y": _number("mse", title="MSE of the x0 estimate", scale={"type": "log", "nice": False},
                     axis=_SHORT),
        "tooltip": [_name("cell"), _number("level", title="log SNR"),
                    _number("mse", title="MSE", format=".4g")],
        **_colours(names),
    }  # fmt: skip
    layers = [  # of a layer without rows Vega warns
        _layer({"type": "line", **style}, shared) | _where(condition)
        for style, condition, has_rows in (
            ({"strokeWidth": 1.2, "strokeDash": [8, 3]}, "datum.is_line", rows[-1]["is_line"]),
            ({}, f"!datum.is_line && datum.level >= {low} && datum.level <= {high}", True),
            ({"strokeDash": [4, 4]}, f"!datum.is_line && datum.level <= {low}", min(levels) < low),
            ({"strokeDash": [4, 4]}, f"!datum.is_line && datum.level >= {high}",
             max(levels) > high),
        )
        if has_rows
    ]  # fmt: skip
    layers.append(_layer(_point(26), shared, shape=_shape(names)) | _where("!datum.is_line"))
    return _over_levels(layers, "curves", rows, (low, high), list(groups))


def weight_curves(sweep: SweepResults, ranking: Ranking, axes: Axes) -> Spec | None:
    """Weight of the x0-error in the training loss over log SNR, adding up to 1 over the window, one
    chart a facet; None where all cells weigh alike or the weights are not known.
    """
    inside, known = set(ranking.levels), []
    for one in ranking.standings:
        weights = {k: w for k, w in sweep.weights.get(one.key, {}).items() if w > 0}
        if total := sum(w for k, w in weights.items() if k in inside):
            known.append((one, {k: w / total for k, w in sorted(weights.items())}))
    if len({tuple(f"{w:.3g}" for w in curve.values()) for _, curve in known}) < 2:
        return None
    groups = chosen([one.cell for one, _ in known], axes.facets, axes, ranking)
    rows: list[Row] = [
        {"panel": title, "series": axes.series_name(one.cell), "level": level, "weight": weight,
         "cell": one.label}
        for title, cells in groups.items() for one, curve in known if one.cell in cells
        for level, weight in curve.items()
    ]  # fmt: skip
    names = _series([one.cell for one, _ in known], axes)
    shared = {
        "x": _number("level", title="log SNR (noisy \u2192 clean)", scale={"nice": False}),
        "y": _number("weight", title="weight of the x0-error", axis=_SHORT,
                     scale={"type": "log", "nice": False}),
        "tooltip": [_name("cell"), _number("level", title="log SNR"),
                    _number("weight", title="weight", format=".3g")],
        **_colours(names),
    }  # fmt: skip
    layers = [_layer({"type": "line"}, shared), _layer(_point(26), shared, shape=_shape(names))]
    window = ranking.levels[0], ranking.levels[-1]
    return _over_levels(layers, "weights", rows, window, list(groups))


def _over_levels(
    layers: list[Spec], name: str, rows: list[Row], window: tuple[int, int], groups: list[str]
) -> Spec:
    """Layers over levels of log SNR, a chart a group; on grey: beyond the window."""
    levels, datasets = [row["level"] for row in rows], {name: rows}
    edges = [(min(levels), window[0]), (window[1], max(levels))]
    if grey := [{"from": a, "to": b} for a, b in edges if b > a]:
        outside = _layer({"type": "rect", "opacity": 0.09, "color": "gray"}, {}, x=_number("from"),
                         x2={"field": "to"})  # fmt: skip
        layers.insert(0, outside | {"data": {"name": f"outside of {name}"}})
        datasets[f"outside of {name}"] = grey
    chart = _facets(_chart(layers, name, width=290, height=220), groups)
    return {**chart, "params": [_picked([chart])], "datasets": datasets}


def over_cost(ranking: Ranking, axes: Axes) -> Spec | None:
    """Both measures over what a trial cost, with the Pareto front; None where no cost is known."""
    standings, seconds = known_costs(ranking)
    if len(standings) < 2:
        return None
    size, unit = next((u for u in reversed(_UNITS) if max(seconds) >= 2 * u[0]), _UNITS[0])
    title = f"{ranking.standings[0].cost.device} time per trial ({unit})"
    is_wide = max(seconds) > _WIDE * min(seconds) > 0
    x = _number("cost", title=title, scale={"type": "log" if is_wide else "linear"})
    names = _series([one.cell for one in standings], axes)
    shared = {"x": x, **_colours(names)}
    charts: list[Spec] = []
    datasets: dict[str, list[Row]] = {}
    for measure in ranking.measures:
        rows: list[Row] = [
            {"cell": one.label, "series": axes.series_name(one.cell), "cost": spent / size,
             **_with_interval(one, measure)}
            for one, spent in zip(standings, seconds, strict=True)
        ]  # fmt: skip
        y = _y(TITLES[measure], [row["low"] for row in rows] + [row["high"] for row in rows],
               may_be_log=measure != X0_MEASURES[0])  # fmt: skip
        points = _layer(
            _point(55), shared, y=y("value"), shape=_shape(names),
            tooltip=[_name("cell"), _name("tip", title=TITLES[measure]),
                     _number("cost", title=title, format=".3g")],
        )  # fmt: skip
        best = front(seconds, [row["value"] for row in rows])
        steps = [{k: rows[place][k] for k in ("cost", "value")} for place in best]
        steps.append({"cost": max(seconds) / size, "value": steps[-1]["value"]})
        stairs = _layer({"type": "line", "interpolate": "step-after", "color": "gray",
                         "strokeWidth": 1.2}, {}, x=x, y=y("value"))  # fmt: skip
        stairs["data"] = {"name": f"front of {measure}"}
        bars = _layer({"type": "rule"}, shared, y=y("low"), y2={"field": "high"})
        layers = [stairs, *([bars] if len(rows) <= _BARS else []), points]
        charts.append(_chart(layers, measure, width=400, height=260))
        datasets |= {measure: rows, f"front of {measure}": steps}
    return {"hconcat": charts, "params": [_picked(charts)], "datasets": datasets}


def over_compute(families: Sequence[Sequence[Law]], axes: Axes) -> Spec:
    """Every size of each family over its training compute with the family's line, a chart a
    measure; both axes logarithmic.
    """
    charts: list[Spec] = []
    datasets: dict[str, list[Row]] = {}
    for laws in families:
        measure = laws[0].measure
        rows: list[Row] = [
            {"series": law.name, "compute": seconds, "value": 10 ** one.log10(measure),
             "cell": one.label, "is_line": False}
            for law in laws for one in law.cells if (seconds := seconds_of(one))
        ]  # fmt: skip
        for law in laws:
            ends = law.compute[[0, -1]]
            rows += [
                {"series": law.name, "compute": float(10**x), "value": float(10**y), "cell": "fit",
                 "is_line": True}
                for x, y in zip(ends, law.at(ends).mean(axis=0), strict=True)
            ]  # fmt: skip
        names = [law.name for law in laws]
        usual = _series([one.cell for law in laws for one in law.cells], axes)
        names = usual if {*names} <= {*usual} else names  # in the colours of the other charts
        log = {"type": "log", "nice": False}
        title = TITLES[measure] if measure != X0_MEASURES[0] else "geometric mean of the x0-error"
        shared = {
            "x": _number("compute", title="seconds of training compute", scale=log, axis=_SHORT),
            "y": _number("value", title=title, scale=log, axis=_SHORT),
            **_colours(names),
        }
        tooltip = [_name("cell"), _number("compute", title="seconds", format=".3g"),
                   _number("value", title=title, format=".3g")]  # fmt: skip
        layers = [
            _layer({"type": "line"}, shared) | _where("datum.is_line"),
            _layer(_point(40), shared, shape=_shape(names), tooltip=tooltip)
            | _where("!datum.is_line"),
        ]
        charts.append(_chart(layers, measure, width=330, height=240))
        datasets[measure] = rows
    return {"hconcat": charts, "params": [_picked(charts)], "datasets": datasets}


def over_choice(tuning: Tuning, axes: Axes) -> Spec:
    """Each measure of the tuning trainings over the number that was chosen, a row a measure."""
    (key,) = tuning.keys
    cells = [one.cell for one in tuning.cells]
    groups = {title: some[:] for title, some in axes.grouped(cells, axes.facets).items()}
    names = _series(cells, axes)
    tried = [float(draw.cell[key]) for one in tuning.cells for draw in one.draws]  # type: ignore[arg-type]
    shared = {
        "x": _number("choice", title=spoken(key), scale=_scale(_is_wide(tried)), axis=_SHORT),
        "detail": _name("cell"),
        **_colours(names),
    }
    charts: list[Spec] = []
    datasets: dict[str, list[Row]] = {}
    for measure in tuning.ranking.measures:
        rows: list[Row] = [
            {"panel": title, "series": axes.series_name(one.cell), "choice": draw.cell[key],
             "cell": axes.label(one.cell), "value": draw.value(measure),
             "is_chosen": draw is one.best,
             "tip": with_error(draw.value(measure), draw.error(measure))}
            for title, some in groups.items() for one in tuning.cells if one.cell in some
            for draw in one.draws
        ]  # fmt: skip
        may_be_log = measure != X0_MEASURES[0]
        y = _y(TITLES[measure], [row["value"] for row in rows], may_be_log=may_be_log)
        tooltip = [_name("cell"), _number("choice", title=spoken(key)), _name("tip")]
        points = _layer(_point(30), shared, y=y("value"), shape=_shape(names), tooltip=tooltip)
        chosen = _layer(_point(130), shared, y=y("value"), shape=_shape(names))
        layers = [_layer({"type": "line"}, shared, y=y("value")), points]
        layers.append(chosen | _where("datum.is_chosen"))
        chart = _chart(layers, measure, width=290, height=190)
        charts.append(_facets(chart, list(groups)))
        datasets[measure] = rows
    return {"vconcat": charts, "params": [_picked(charts)], "datasets": datasets}


def sampling_curves(
    spots: Sequence[Spot],
    names: Sequence[str],
    ranking: Ranking,
    axes: Axes,
    over: Literal["calls", "guidance"] = "calls",
) -> Spec:
    """Each quality of samples over network calls or guidance, a row of facets a quality."""
    cells = list({id(spot.cell): spot.cell for spot in spots}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    ways = [method(spot.point) for spot in spots]
    if over == "guidance":
        points = [spot.point for spot in spots]
        lengths = ["" if p.ema_length is None else f" length={p.ema_length:g}" for p in points]
        ways = [f"\u03b7={p.eta:g}{length}" for p, length in zip(points, lengths, strict=True)]
    several = len({*ways}) > 1
    series = _series(cells, axes)
    shared = {
        "x": _number("calls", axis=_SHORT,
                     title="guidance" if over == "guidance" else "network calls per image",
                     scale={"type": "linear" if over == "guidance" else "log", "nice": False}),
        "detail": _name("cell"),
        **_colours(series),
    }  # fmt: skip
    charts: list[Spec] = []
    datasets: dict[str, list[Row]] = {}
    for name in names:
        rows: list[Row] = [
            {"panel": ", ".join(filter(None, [title, way if several else ""])),
             "series": axes.series_name(spot.cell), "cell": spot.label,
             "calls": spot.point.evaluations if over == "calls" else spot.point.guidance,
             "value": found.value, "low": found.low, "high": found.high,
             "tip": f"{method(spot.point)}, {spot.point.num_steps} steps: {interval_text(found)}"}
            for title, group in groups.items() for spot, way in zip(spots, ways, strict=True)
            if spot.cell in group and (found := spot.qualities.get(name)) is not None
        ]  # fmt: skip
        y = _y(TITLES[name], [row["low"] for row in rows] + [row["high"] for row in rows])
        layers = [
            _layer({"type": "line"}, shared, y=y("value")),
            _layer({"type": "rule"}, shared, y=y("low"), y2={"field": "high"}),
            _layer(_point(30), shared, y=y("value"), shape=_shape(series),
                   tooltip=[_name("cell"), _name("tip", title=TITLES[name])]),
        ]  # fmt: skip
        chart = _chart(layers, name, width=290, height=190)
        charts.append(_facets(chart, list(dict.fromkeys(row["panel"] for row in rows))))
        datasets[name] = rows
    return {"vconcat": charts, "params": [_picked(charts)], "datasets": datasets}


def learning_curves(
    sweep: SweepResults, ranking: Ranking, axes: Axes, titles: Mapping[str, str]
) -> Spec | None:
    """Measures over optimizer steps, wall time or compute, whichever is picked.

    Lines are means over seeds, bands reach from the lowest to the highest seed.
    """
    having = [trial for trial in sweep.trials if any(name in trial.metrics for name in titles)]
    cells = list({trial.key: trial.cell for trial in having}.values())
    groups = chosen(cells, axes.facets, axes, ranking)
    panels = {id(cell): title for title, group in groups.items() for cell in group}
    found: dict[str, list[Row]] = {
        name: [
            row | {"panel": panels[id(cell)], "series": axes.series_name(cell),
                   "cell": axes.label(cell)}
            for cell in cells if id(cell) in panels
            for row in learning_curve([t for t in having if t.cell == cell], name)
        ]
        for name in titles
    }  # fmt: skip
    found = {name: rows for name, rows in found.items() if rows}
    if not found:
        return None
    every = [row for rows in found.values() for row in rows]
    computed = "GPU" if any(gpus_of(trial.provenance) for trial in sweep.trials) else "core"
    over, unit = {"optimizer steps": "steps"}, {"optimizer steps": 1}
    for kind, words in (("seconds", "wall time"), ("compute", f"{computed} time")):
        if longest := max((row.get(kind) or 0 for row in every), default=0):
            size, name = next((u for u in reversed(_UNITS) if longest >= 2 * u[0]), _UNITS[0])
            over[f"{words} ({name})"], unit[f"{words} ({name})"] = kind, size
    names = _series(cells, axes)
    axis: Spec = {"name": "over", "value": "optimizer steps"}
    if len(over) > 1:
        axis["bind"] = {"input": "radio", "options": list(over), "name": "over "}
    place = " : ".join(f"over == '{k}' ? datum.{kind} / {unit[k]}" for k, kind in over.items())
    charts = []
    for name, rows in found.items():
        may_be_log = not name.endswith("_log10_mse")
        y = _y(titles[name], [row["mean"] for row in rows], may_be_log=may_be_log)
        shared = {
            "x": _number("x", title=None if len(over) > 1 else "optimizer steps"),
            "detail": _name("cell"),
            "tooltip": [_name("cell"), _number("steps", title="optimizer steps"),
                        _number("mean", title=titles[name], format=".4g")],
            **_colours(names),
        }  # fmt: skip
        layers = [
            _layer({"type": "line"}, shared, y=y("mean")),
            _layer(_point(26), shared, y=y("mean"), shape=_shape(names)),
        ]
        if len(names) <= _BANDS:
            layers.insert(0, _layer({"type": "area"}, shared, y=y("low"), y2={"field": "high"},
                                    opacity=_opacity(0.16, 0)))  # fmt: skip
        for layer in layers:
            layer["transform"] = [{"calculate": f"{place} : null", "as": "x"}]
        layers[-1]["transform"].append({"filter": "datum.is_marked"})
        panels_of = {row["panel"] for row in rows}
        chart = _chart(layers, name, width=290, height=170)
        charts.append(_facets(chart, [title for title in groups if title in panels_of]))
    return {"vconcat": charts, "params": [_picked(charts), axis], "datasets": found}


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
    kinds = [kind for kind in columns[0] if all(kind in one for one in columns)]
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
        if gpus_of(trial.provenance):
            found["compute"] = found["seconds"] * gpus_of(trial.provenance)
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


def known_costs(ranking: Ranking) -> tuple[list[Standing], list[float]]:
    """The cells whose cost is known, and their seconds of compute per trial."""
    known = [one for one in ranking.standings if one.costs]
    return known, [float(np.mean(one.costs)) for one in known]


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


def _picked(charts: Sequence[Spec]) -> Spec:
    """The series that are shown: a click in a chart's legend, Shift for several."""
    views = [chart.get("spec", chart)["layer"][0]["name"] for chart in charts]
    select = {"type": "point", "fields": ["series"]}
    return {"name": "picked", "select": select, "bind": "legend", "views": views}


def _colours(names: Sequence[str]) -> Spec:
    """The colour of a series; pale while others are picked."""
    return {"color": _by_series(names), "opacity": _opacity(1, 0.08)}


def _shape(names: Sequence[str]) -> Spec:
    """The second sign beside colour."""
    return _by_series(names, range=[_SYMBOLS[k % len(_SYMBOLS)] for k in range(len(names))])


def _by_series(names: Sequence[str], **scale: Any) -> Spec:
    legend = None if len(names) < 2 else {"orient": "top", "symbolOpacity": 1}
    return _name("series", title=None, scale={"domain": names, **scale}, legend=legend)


def _opacity(picked: float, other: float) -> Spec:
    return {"condition": {"param": "picked", "value": picked}, "value": other}


def _y(title: str, values: Sequence[float], *, may_be_log: bool = True) -> Callable[[str], Spec]:
    """The y channel of numbers; on a logarithmic scale where their ratio is large."""
    is_log = may_be_log and _is_wide([value for value in values if isfinite(value)])
    scale = _scale(is_log) | {"nice": not is_log}
    return lambda field: _number(field, title=title, scale=scale, axis=_SHORT)


def _is_wide(values: Sequence[float]) -> bool:
    return min(values, default=0) > 0 and max(values) > _LOGARITHMIC * min(values)


def _scale(is_log: bool) -> Spec:
    """Neither begins at zero; Vega warns where a logarithmic scale says so."""
    return {"type": "log"} if is_log else {"type": "linear", "zero": False}


def _number(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "quantitative", **more}


def _name(field: str, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", **more}


def _point(size: int) -> Spec:
    return {"type": "point", "filled": True, "size": size}


def _layer(mark: Spec, shared: Spec, **channels: Any) -> Spec:
    return {"mark": mark, "encoding": {**shared, **channels}}


def _where(condition: str) -> Spec:
    return {"transform": [{"filter": condition}]}


def _chart(layers: list[Spec], rows: str, *, width: int, height: int | Spec) -> Spec:
    """Layers over the rows of that name. The first has a name, for `_picked`."""
    named = [{"name": f"view of {rows}", **layers[0]}, *layers[1:]]
    return {"layer": named, "data": {"name": rows}, "width": width, "height": height}


def _facets(chart: Spec, titles: Sequence[str]) -> Spec:
    """Charts side by side, one a value of `panel`; the chart itself where there is one panel."""
    if len(titles) < 2:
        return chart
    facet = _name("panel", sort=list(titles), header={"title": None})
    inner = {key: value for key, value in chart.items() if key != "data"}
    columns = min(len(titles), 4)
    return {"facet": facet, "spec": inner, "data": chart["data"], "columns": columns}
