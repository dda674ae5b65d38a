"""The curves of a report: x0-error over log SNR, and the training losses over steps."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from ddpm.report.axes import Axes
from ddpm.report.data import Lines, Sweep, Trial
from ddpm.report.files import LOSSES
from ddpm.report.labels import signed
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.svg import Frame, Series, line_chart, marker_path, y_range

GAUSSIAN, MEMORISATION = "Gaussian fit", "memorisation"
_FACETS = 12
_POINTS = 120
_LOSS_TITLES = {"n_loss": "noise loss", "i_loss": "image loss", "v_loss": "velocity loss"}


def x0_curves(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
    """MSE of the x0 estimate over log SNR, one chart a facet, with the two reference lines."""
    by_cell = {standing.label: standing for standing in ranking.standings}
    lines = _reference_series(sweep.references)
    facets = axes.grouped((s.cell for s in ranking.standings), axes.facets)
    drawn = {
        title: [
            _error_series(standing, axes) for standing in by_cell.values() if standing.cell in cells
        ]
        for title, cells in list(facets.items())[:_FACETS]
    }
    levels = [x for series in drawn.values() for one in series for x in one.x]
    x_range = (min(levels), max(levels))
    edges = y_range([one for series in drawn.values() for one in series])
    lines = [_inside(line, x_range, edges[0]) for line in lines]
    frame = Frame(
        x_range=x_range,
        y_range=edges,
        x_title="log SNR (noisy \u2192 clean)",
        y_title="MSE of the x0 estimate",
        solid=(ranking.levels[0], ranking.levels[-1]),
    )
    charts = {
        title: line_chart(
            [*lines, *_ordered(series)], frame, f"x0-error over log SNR, {title or 'all'}"
        )
        for title, series in drawn.items()
    }
    columns = 2 if len(charts) in (2, 4) else 3
    return _legend([*_first_each(drawn.values()), *lines]) + _facets(charts, len(facets), columns)


def loss_curves(sweep: Sweep, axes: Axes) -> str:
    """v3's three losses over steps of every trial, a row of charts a loss; "" without metrics."""
    trials = [trial for trial in sweep.trials if len(trial.metrics.get("step", ())) > 1]
    first_seed = min((trial.seed for trial in trials), default=0)
    trials = [trial for trial in trials if trial.seed == first_seed]
    facets = list(axes.grouped([trial.cell for trial in trials], axes.facets).items())
    drawn = {
        (loss, title): [
            _loss_series(trial, loss, axes)
            for trial in trials
            if trial.cell in cells and loss in trial.metrics
        ]
        for loss in LOSSES
        for title, cells in facets[:_FACETS]
    }
    if not any(drawn.values()):
        return ""
    charts = {}
    for (loss, title), series in drawn.items():
        every = [one for key, some in drawn.items() if key[0] == loss for one in some]
        if every:
            frame = _loss_frame(every, loss)
            name = f"{_LOSS_TITLES[loss]}, {title}" if title else _LOSS_TITLES[loss]
            charts[name] = line_chart(_ordered(series), frame, name)
    columns = len(facets) if len(facets) in (2, 4) else 3
    return _legend(_first_each(drawn.values())) + _facets(
        charts, len(LOSSES) * len(facets), columns
    )


def _loss_frame(series: Sequence[Series], loss: str) -> Frame:
    return Frame(
        x_range=(0, max(x for one in series for x in one.x)),
        y_range=y_range(series),
        x_title="optimizer steps",
        y_title=_LOSS_TITLES[loss],
        height=210,
    )


def _error_series(standing: Standing, axes: Axes) -> Series:
    values = standing.curve(standing.levels)
    name = axes.series_name(standing.cell)
    tips = [
        f"{standing.label}\nlog SNR {signed(x)}: MSE {y:.4g}"
        for x, y in zip(standing.levels, values, strict=True)
    ]
    return Series(
        name=name, x=standing.levels, y=list(values), style=axes.style(standing.cell), tips=tips
    )


def _reference_series(lines: Lines | None) -> list[Series]:
    if lines is None:
        return []
    curves = ((GAUSSIAN, lines.gaussian, "a"), (MEMORISATION, lines.memorisation, "b"))
    return [
        Series(name=name, x=lines.levels, y=values, style=style, has_markers=False)
        for name, values, style in curves
        if values is not None
    ]


def _inside(series: Series, x_range: tuple[float, float], lowest: float) -> Series:
    """The part of a falling reference line that the charts show."""
    below = [k for k, y in enumerate(series.y) if y < lowest]
    last = below[0] if below else len(series.y)
    kept = [k for k, x in enumerate(series.x) if x_range[0] <= x <= x_range[1] and k <= last]
    return Series(
        name=series.name,
        x=[series.x[k] for k in kept],
        y=[series.y[k] for k in kept],
        style=series.style,
        has_markers=False,
    )


def _loss_series(trial: Trial, loss: str, axes: Axes) -> Series:
    steps, values = thinned(trial.metrics["step"], trial.metrics[loss])
    return Series(
        name=axes.series_name(trial.cell),
        x=list(steps),
        y=list(values),
        style=axes.style(trial.cell),
        has_markers=False,
    )


def thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most 120 points of a curve: means of neighbours, so that noise is smoothed evenly."""
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return (
        np.array([steps[part].mean() for part in parts]),
        np.array([values[part].mean() for part in parts]),
    )


def _ordered(series: Iterable[Series]) -> list[Series]:
    return sorted(series, key=lambda one: str(one.style))


def _first_each(charts: Iterable[Sequence[Series]]) -> list[Series]:
    """One series of each name, in the order of their styles, for the legend."""
    return _ordered({one.name: one for some in charts for one in some}.values())


def _facets(charts: Mapping[str, str], total: int, columns: int) -> str:
    """Titled charts side by side; a sentence says how many of `total` are left out."""
    figures = "".join(
        f"<figure>{f'<h4>{escape(title)}</h4>' if title else ''}{svg}</figure>"
        for title, svg in charts.items()
    )
    more = total - len(charts)
    note = f"<p class='note'>{more} more charts are left out; see results.csv.</p>" if more else ""
    return f'<div class="facets columns-{min(columns, len(charts))}">{figures}</div>{note}'


def _legend(series: Sequence[Series]) -> str:
    """Buttons that name the curves; a click hides one. A single curve needs none."""
    if len(series) < 2:
        return ""
    items = "".join(
        f'<button type="button" aria-pressed="true" data-series="{escape(one.name)}">'
        f'<svg viewBox="0 0 30 12" aria-hidden="true"><g class="s-{one.style} s">'
        f'<polyline class="line" points="1,6 29,6"/>'
        + (f'<path class="mark" d="{marker_path(one.style, 15, 6, 3.4)}"/>' * one.has_markers)
        + f"</g></svg>{escape(one.name)}</button>"
        for one in series
    )
    return f'<div class="legend" role="group" aria-label="Curves shown">{items}</div>'
