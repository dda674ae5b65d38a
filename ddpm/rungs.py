"""Where a trial is compared with others while it trains, and by which number.

A rung is an evaluation, so all trials stand on it after equally many images. Its number is the very
one that the trial's summary has at its end (`evaluate.metrics_of`, or of samples), lower is better.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Protocol

from ddpm import comparable
from ddpm.ledger import Outcome
from ddpm.rundir import Report


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One evaluation. value: lower is better; infinite where the network gave no finite number."""

    evaluation: int
    step: int
    images: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The rungs of a trial: after every `every` optimizer steps, and at the end."""

    metric: str
    every: int
    total: int

    @property
    def evaluations(self) -> int:
        """How many there are."""
        return -(-self.total // self.every)

    def rung(self, row: Mapping[str, Any]) -> Rung | None:
        """The rung that a row of metrics is; None between two of them."""
        step, name = int(row["step"]), comparable.column(self.metric)
        if name not in row or (step % self.every and step != self.total):
            return None
        return Rung(
            evaluation=-(-step // self.every),
            step=step,
            images=int(row["images"]),
            value=cost(self.metric, row[name]),
        )

    def rungs(self, rows: Iterable[Mapping[str, Any]]) -> list[Rung]:
        """All rungs among the rows, in their order."""
        return [rung for row in rows if (rung := self.rung(row)) is not None]


def cost(metric: str, value: object) -> float:
    """The metric's value so that lower is better; infinite where it is no finite number."""
    is_number = isinstance(value, int | float) and isfinite(value)
    return comparable.sign(metric) * float(value) if is_number else inf  # type: ignore[arg-type]


class Guide(Protocol):
    """Watches a trial for a search, and may end it."""

    def on_row(self, row: Mapping[str, Any]) -> None:
        """Hears a row of the trial's metrics, the same one twice where the trial repeats it."""

    def stops(self) -> bool:
        """Whether the trial is to save and end."""

    def outcome(self, blank: Outcome) -> Outcome | None:
        """What to record of a trial that ended at its word; None: it is to be continued."""


def row_of(report: Report) -> dict[str, Any]:
    """A report as its row of metrics."""
    return {"step": report.step, "images": report.images, **report.metrics}
