"""The best evaluation of a run, and when a run has had enough of those that are no better."""

from collections.abc import Iterable, Mapping
from enum import IntFlag
from typing import Any

from ddpm.config import Evaluation


class Patience(IntFlag):
    """Meaning of an evaluation for the training.

    Decided from the run's own rows of metrics, so a run that continues decides as one that was
    never stopped.
    """

    NOTHING = 0
    KEEP = 1  # the best so far: its checkpoint is saved and kept
    ENOUGH = 2  # PATIENCE evaluations were no better: the training ends here


def best_step(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> int | None:
    """The step of the lowest EVALUATION.BEST, the first of equals; None without either."""
    return min(_measured(rows, options), default=(0.0, None))[1]


def judge(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> Patience:
    """The meaning of the last of a run's evaluations."""
    found = _measured(rows, options)
    if not found:
        return Patience.NOTHING
    best = min(found)
    verdict = Patience.KEEP if best == found[-1] else Patience.NOTHING
    since = sum(step > best[1] for _, step in found)
    if options.PATIENCE is not None and since >= options.PATIENCE:
        verdict |= Patience.ENOUGH
    return verdict


def _measured(rows: Iterable[Mapping[str, Any]], options: Evaluation) -> list[tuple[float, int]]:
    """(value, step) of the evaluations, in order; one that was not finite is none."""
    if options.BEST is None:
        return []
    found = ((row.get(f"val_{options.BEST}"), row["step"]) for row in rows)
    return [(value, step) for value, step in found if value is not None]
