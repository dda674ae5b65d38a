"""Which factor of a grid becomes colour, row or panel, the same in every picture of a report."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ddpm.report.data import Sweep
from ddpm.report.files import Value
from ddpm.report.labels import PRED_TYPE, SCHEDULER, cell_label, part, varied

_PRED_TYPES = ("noise", "image", "velocity")

Cell = Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """series: the key that becomes colour and heat map column, None for a single cell.

    rows: the key that becomes heat map row.  panels: all other keys in which cells differ.
    """

    series: str | None
    rows: str | None
    panels: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]  # of every varied key, in the grid's order

    @property
    def facets(self) -> tuple[str, ...]:
        """The keys that tell charts apart, where curves of one chart differ in `series`."""
        return (*((self.rows,) if self.rows else ()), *self.panels)

    def style(self, cell: Cell) -> int:
        """The colour number of a cell's curve."""
        return 0 if self.series is None else place(self.values[self.series], cell.get(self.series))

    def series_name(self, cell: Cell) -> str:
        """What a cell's curve is called in the legend."""
        return cell_label(cell, ()) if self.series is None else part(self.series, cell[self.series])

    def grouped(self, cells: Iterable[Cell], keys: Sequence[str]) -> dict[str, list[Cell]]:
        """Cells by their values of `keys`, in the grid's order; one group named "" without keys."""
        ordered = sorted(cells, key=lambda cell: [self.place(key, cell) for key in keys])
        groups: dict[str, list[Cell]] = {}
        for cell in ordered:
            groups.setdefault(cell_label(cell, keys) if keys else "", []).append(cell)
        return groups

    def place(self, key: str, cell: Cell) -> int:
        """Number of a cell's value among the grid's values of `key`."""
        return place(self.values[key], cell.get(key))


def axes_of(sweep: Sweep) -> Axes:
    """The roles of a sweep's factors."""
    cells = [*(trial.cell for trial in sweep.trials), *(one.cell for one in sweep.skipped)]
    keys = varied(cells)
    series = PRED_TYPE if PRED_TYPE in keys else (keys[-1] if keys else None)
    others = [key for key in keys if key != series]
    rows = SCHEDULER if SCHEDULER in others else (others[0] if others else None)
    return Axes(
        series=series,
        rows=rows,
        panels=tuple(key for key in others if key != rows),
        values={key: _values(key, sweep, cells) for key in keys},
    )


def _values(key: str, sweep: Sweep, cells: Iterable[Cell]) -> tuple[Value, ...]:
    seen = {_text(v): v for v in (*sweep.grid.get(key, ()), *(c[key] for c in cells if key in c))}
    values = tuple(seen.values())
    if key == PRED_TYPE:
        return tuple(sorted(values, key=lambda v: place(_PRED_TYPES, v)))
    return values


def place(values: Sequence[Value], value: Value) -> int:
    """Index of a value among values, by its JSON text; their number when it is not among them."""
    texts = [_text(one) for one in values]
    return texts.index(_text(value)) if _text(value) in texts else len(texts)


def _text(value: Value) -> str:
    return json.dumps(value, sort_keys=True)
