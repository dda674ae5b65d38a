"""A Specification as the blocks of a W&B Report (wandb-workspaces, reports.v2).

Configuration keys are nested in W&B, and what follows the first word stands behind its `.value`:
TRAINING.NETWORK.SCHEDULER is config:TRAINING.value.NETWORK.SCHEDULER in a table's columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr

from ddpm.report.panels import (
    Bars,
    Curves,
    Differences,
    Panel,
    Parallel,
    Pictures,
    Place,
    Scatter,
    Section,
    Specification,
)

WIDTH = 24  # of a grid of panels, in W&B's units
MOST_RUNS = 100  # that a panel draws at once


def report(specification: Specification, places: Sequence[Place]) -> wr.Report:
    """The report, in the first place; nothing is asked of a server before it is saved.

    places: those of the specification, their entities known.
    """
    blocks: list[Any] = [wr.TableOfContents()]
    for section in specification.sections:
        blocks.append(wr.H1(section.title))
        if section.text:
            blocks.append(wr.MarkdownBlock(section.text))
        if section.panels or section.has_table:
            blocks.append(_grid(specification, section, places))
    return wr.Report(
        project=places[0].project,
        entity=_entity(places[0]),
        title=specification.title,
        description=specification.description,
        blocks=blocks,
        width="fluid",
    )


def _entity(place: Place) -> str:
    assert place.entity is not None  # whoever asks for a report has looked it up
    return place.entity


def _grid(specification: Specification, section: Section, places: Sequence[Place]) -> wr.PanelGrid:
    across = 3 if len(section.panels) > 2 else max(len(section.panels), 1)
    wide = [isinstance(panel, Parallel | Pictures | Differences) for panel in section.panels]
    panels, x, y = [], 0, 0
    for panel, is_wide in zip(section.panels, wide, strict=True):
        width = WIDTH if is_wide else WIDTH // across
        if x + width > WIDTH:
            x, y = 0, y + 10
        panels.append(_panel(panel, wr.Layout(x=x, y=y, w=width, h=10)))
        x += width
    return wr.PanelGrid(
        runsets=[_runs(specification, section, place) for place in places],
        hide_run_sets=not section.has_table,
        panels=panels,
    )


def _runs(specification: Specification, section: Section, place: Place) -> wr.Runset:
    """The runs of a sweep, or the one run, in the order of the first number, lowest first."""
    found = (
        expr.Metric("Group") == specification.group
        if specification.group is not None
        else expr.Metric("ID").isin(list(specification.runs))
    )
    columns = [
        "run:displayName",
        *(f"config:{_nested(key)}" for key in specification.factors),
        *(f"summary:{name}" for name in specification.columns),
    ]
    return wr.Runset(
        entity=_entity(place),
        project=place.project,
        name=specification.group or specification.title,
        filters=expr.And(found),
        groupby=[f"config.{key}" for key in specification.factors] if section.is_grouped else [],
        order=[wr.OrderBy(wr.SummaryMetric(specification.columns[0]), ascending=True)],
        pinned_columns=columns[:1],
        visible_columns=columns[1:],
        lock_columns=True,
    )


def _nested(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{first}.value.{rest}" if rest else f"{first}.value"


def _panel(panel: Panel, layout: wr.Layout) -> Any:
    match panel:
        case Curves():
            return wr.LinePlot(
                title=panel.title,
                x=panel.x,
                y=list(panel.y),
                title_x=panel.x,
                log_y=panel.has_log_y,
                max_runs_to_show=MOST_RUNS,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
                layout=layout,
            )
        case Bars():
            return wr.BarPlot(
                title=panel.title,
                metrics=[panel.number],
                max_runs_to_show=MOST_RUNS,
                max_bars_to_show=MOST_RUNS,
                layout=layout,
            )
        case Scatter():
            return wr.ScatterPlot(
                title=panel.title,
                x=wr.SummaryMetric(panel.x),
                y=wr.SummaryMetric(panel.y),
                layout=layout,
            )
        case Parallel():
            keys: list[wr.Config | wr.SummaryMetric] = [*map(wr.Config, panel.factors)]
            keys += map(wr.SummaryMetric, panel.numbers)
            columns = [wr.ParallelCoordinatesPlotColumn(metric=key) for key in keys]
            return wr.ParallelCoordinatesPlot(title=panel.title, columns=columns, layout=layout)
        case Pictures():
            mode: Literal["grid", "gallery"] = "grid" if panel.has_steps else "gallery"
            return wr.MediaBrowser(
                title=panel.title,
                media_keys=[panel.key],
                mode=mode,
                gallery_axis=None if panel.has_steps else "run",
                grid_x_axis="step" if panel.has_steps else None,
                grid_y_axis="run" if panel.has_steps else None,
                layout=layout,
            )
        case Differences():
            return wr.RunComparer(diff_only="split", layout=layout)
