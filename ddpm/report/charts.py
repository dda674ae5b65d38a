"""What the charts of a section share: a legend that hides curves, and charts side by side."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from ddpm.report.axes import Axes, Cell
from ddpm.report.labels import cell_label
from ddpm.report.ranking import Ranking
from ddpm.report.svg import Series, colour, marker_path

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


def in_order(series: Iterable[Series]) -> list[Series]:
    """By their styles, as in the legend."""
    return sorted(series, key=lambda one: (isinstance(one.style, str), str(one.style).zfill(3)))


def first_each(charts: Iterable[Sequence[Series]]) -> list[Series]:
    """One series of each name, in order, for the legend."""
    return in_order({one.name: one for some in charts for one in some}.values())


def legend(series: Sequence[Series]) -> str:
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
