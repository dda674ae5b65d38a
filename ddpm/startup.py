"""Where the time from the start of a job to its first step goes.

Marks are made by the batch script, the command and the first worker, and travel with the job.
"""

import logging
import os
import time
from collections.abc import Callable

import psutil

# set by slurm/job.sh, seconds since 1970: when it began, and when it started the command
JOB_START, JOB_READY = "DDPM_JOB_START", "DDPM_JOB_READY"
log = logging.getLogger("ddpm.run")

Marks = tuple[tuple[str, float], ...]


def begun() -> Marks:
    """The first marks: when the job started, when its script had started this process, and now."""
    start = float(os.environ.get(JOB_READY, psutil.Process().create_time()))
    job = float(os.environ.get(JOB_START, start))
    return (("", job), ("job script", start), ("imports", time.time()))


def marked(marks: Marks, what: str) -> Marks:
    """The marks with one more: `what` has just ended."""
    return (*marks, (what, time.time()))


def table(marks: Marks) -> dict[str, float]:
    """Seconds of every part, in order, and their "total"."""
    parts: dict[str, float] = {}
    for (_, before), (what, after) in zip(marks, marks[1:], strict=False):
        parts[what] = parts.get(what, 0.0) + after - before
    return parts | {"total": marks[-1][1] - marks[0][1]}


def told_after_first_step(
    marks: Marks, then: Callable[[], None] | None
) -> Callable[[], None] | None:
    """What to call after each step: says once where the time went, and calls `then` each time."""
    if not marks:
        return then
    told = False

    def on_step() -> None:
        nonlocal told
        if not told:
            told = True
            parts = table(marked(marks, "first step"))
            text = ", ".join(f"{what} {seconds:.1f}" for what, seconds in parts.items())
            log.info("seconds to the first step: %s", text)
        if then:
            then()

    return on_step
