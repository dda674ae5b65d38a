"""The measures of samples as a table on the terminal, the protocol line under it."""

from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from ddpm.estimates import Estimate
from ddpm.sample_measures import MEASURES, Row


def show(record: Mapping[str, Any], console: Console) -> None:
    """Prints the record of an evaluation: its table, the reasons for what is missing, the protocol
    line to paste.
    """
    table = Table(title=record["samples"]["name"], title_justify="left", box=box.SIMPLE)
    for heading in ("measure", "value", "95 % interval", "n", "floor", "better"):
        is_number = heading in ("value", "n", "floor")
        side: Literal["left", "right"] = "right" if is_number else "left"
        table.add_column(heading, justify=side, no_wrap=heading != "measure")
    rows = [Row.of(measure, record["measures"][measure.key]) for measure in MEASURES]
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    for row in rows:
        if row.reason:
            console.print(f"{row.measure.title}: not measured, {row.reason}", soft_wrap=True)
    if record["floor_images"]:
        other = "validation" if record["reference"]["split"] == "train" else "train"
        console.print(
            f"floor: {record['floor_images']:,} real images of the {other} split, measured as the "
            "samples are",
            soft_wrap=True,
        )
    console.print(f"protocol: {record['protocol']}", soft_wrap=True, highlight=False)


def cells(row: Row) -> list[str]:
    """One line of the table."""
    measure, found = row.measure, row.estimate
    if found is None:
        return [measure.title, "–", "", "", "", measure.better]
    floor = f"{measure.fresh:g}" if measure.fresh is not None else "–"
    if row.floor is not None:
        floor = _number(row.floor.value * measure.scale, row.floor, measure.scale)
    return [
        measure.title,
        _number(found.value * measure.scale, found, measure.scale),
        " to ".join(
            _number(bound * measure.scale, found, measure.scale)
            for bound in (found.low, found.high)
        ),
        f"{found.n:,}",
        floor,
        measure.better,
    ]


def _number(value: float, of: Estimate, scale: float) -> str:
    """With as many decimals as the interval bears."""
    width = (of.high - of.low) * scale
    decimals = 1 if width >= 10 else 2 if width >= 1 else 3 if width >= 0.1 else 4
    return f"{value:.{decimals}f}"
