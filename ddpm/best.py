"""The best evaluation of a run so far, from its rows of metrics: whose checkpoint is kept, and when
none better has come for so long that training ends.

Rows are the run's own, so a run that continues decides as one that was never stopped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from ddpm.config import Evaluation


class Verdict(IntFlag):
    """What an evaluation means for the training."""

    NOTHING = 0
    KEEP = 1  # the best so far: its checkpoint is saved and kept
    ENOUGH = 2  # PATIENCE evaluations were no better: the training ends here


@dataclass(frozen=True, kw_only=True)
class Best:
    """The evaluation with the lowest value; the first of equals."""

    step: int
    value: float


def best_of(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Best | None:
    """The best of a run's rows by EVALUATION.BEST; None without either."""
    found = _measured(rows, options)
    return min(found, key=lambda best: (best.value, best.step), default=None)


def judge(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Verdict:
    """What the last of a run's evaluations means."""
    found, best = _measured(rows, options), best_of(rows, options)
    if best is None:
        return Verdict.NOTHING
    verdict = Verdict.KEEP if best == found[-1] else Verdict.NOTHING
    since = sum(one.step > best.step for one in found)
    if options.PATIENCE is not None and since >= options.PATIENCE:
        verdict |= Verdict.ENOUGH
    return verdict


def _measured(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> list[Best]:
    """The evaluations among the rows, in order; one that was not finite is none."""
    if options.BEST is None:
        return []
    found = ((row["step"], row.get(f"val_{options.BEST}")) for row in rows)
    return [Best(step=step, value=value) for step, value in found if value is not None]
