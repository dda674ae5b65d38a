"""The x0-error over log SNR of every cell, with the two reference lines of the data."""

from collections.abc import Sequence

from ddpm.report.axes import Axes
from ddpm.report.charts import chosen, facets, first_each, in_order, legend
from ddpm.report.data import Lines, Sweep
from ddpm.report.labels import signed
from ddpm.report.maps import level_map
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.svg import Frame, Series, line_chart, y_range

GAUSSIAN, MEMORISATION = "Gaussian fit", "memorisation"


def x0_section(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
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


def x0_curves(sweep: Sweep, ranking: Ranking, axes: Axes) -> str:
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


def _error_series(standing: Standing, axes: Axes) -> Series:
    values = standing.curve(standing.levels)
    tips = [
        f"{standing.label}\nlog SNR {signed(x)}: MSE {y:.4g}"
        for x, y in zip(standing.levels, values, strict=True)
    ]
    return Series(
        name=axes.series_name(standing.cell),
        x=standing.levels,
        y=list(values),
        style=axes.style(standing.cell),
        tips=tips,
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
        x=_at(series.x, kept),
        y=_at(series.y, kept),
        style=series.style,
        has_markers=False,
    )


def _at(values: Sequence[float], places: Sequence[int]) -> list[float]:
    return [values[place] for place in places]
