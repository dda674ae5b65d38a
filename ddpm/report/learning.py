"""What a training did over time: its measures over optimizer steps, wall time and compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape

import numpy as np

from ddpm.measures import MEASURES
from ddpm.report import ticks
from ddpm.report.axes import Axes, Cell
from ddpm.report.charts import chosen, facets, first_each, in_order, legend
from ddpm.report.costs import gpus
from ddpm.report.data import Sweep, Trial
from ddpm.report.ranking import Ranking
from ddpm.report.svg import Frame, Series, line_chart
from ddpm.report.verdict import NAMES

_POINTS = 120
_MARKS = 7
_BANDS = 4  # curves of a chart that have bands; those of more would hide each other
_COMPARABLE = tuple(f"val_{measure}" for measure in MEASURES)
_LOSSES = {"n_loss": "noise loss", "i_loss": "image loss", "v_loss": "velocity loss"}
_TITLES = _LOSSES | {f"val_{measure}": NAMES[measure] for measure in MEASURES}
_IS_LOG = {name: name != _COMPARABLE[0] for name in _TITLES}
_UNITS = ((1, "s"), (60, "min"), (3600, "h"))


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A measure of one cell over training: mean, least and largest over its seeds."""

    cell: Cell
    num_seeds: int
    x: Mapping[str, np.ndarray]  # steps, seconds, compute
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def learning_section(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """First the measures that compare, then the losses, which do not; "" without metrics."""
    comparable = _charts(sweep, ranking, axes, _COMPARABLE)
    losses = _charts(sweep, ranking, axes, tuple(_LOSSES))
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


def _charts(sweep: Sweep, ranking: Ranking, axes: Axes, names: Sequence[str]) -> str:
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
            (name, group): [_series(c, kind, axes) for c in some if c.cell in groups[group]]
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
    drawn: Mapping[tuple[str, str], list[Series]], title: str, *, is_time: bool
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


def _curves(having: Sequence[Trial], name: str) -> list[Curve]:
    trials: dict[str, list[Trial]] = {}
    for trial in having:
        if len(trial.metrics.get("step", ())) > 1 and name in trial.metrics:
            trials.setdefault(trial.key, []).append(trial)
    return [curve for some in trials.values() if (curve := _curve(some, name)) is not None]


def _curve(trials: Sequence[Trial], name: str) -> Curve | None:
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
    return Curve(
        cell=trials[0].cell,
        num_seeds=len(trials),
        x={kind: _means(values, parts).mean(axis=0) for kind, values in stacked.items()},
        mean=y.mean(axis=0),
        low=y.min(axis=0),
        high=y.max(axis=0),
    )


def _columns(trial: Trial, name: str) -> dict[str, np.ndarray]:
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


def _series(curve: Curve, kind: str, axes: Axes) -> Series:
    several = curve.num_seeds > 1
    return Series(
        name=axes.series_name(curve.cell),
        x=list(curve.x.get(kind, curve.x["steps"])),
        y=list(curve.mean),
        low=list(curve.low) if several else (),
        high=list(curve.high) if several else (),
        is_band=True,
        style=axes.style(curve.cell),
        mark_every=max(1, len(curve.mean) // _MARKS),
    )
