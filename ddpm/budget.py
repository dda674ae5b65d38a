"""Whether a sweep has spent what TUNE.BUDGET allows it.

Hours are those its trials held cores and GPUs for, busy or not, as their run directories show them:
what a cluster would charge. Runs that other commands began count too; waiting and Ray do not.
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from ddpm import run_status
from ddpm.job_states import JobStates
from ddpm.tune import Budget

LOOK_S = 2.0


class Meter:
    """The spending of the runs in the directories that `runs` lists, which may grow."""

    def __init__(self, budget: Budget, runs: Callable[[], Iterable[Path]]) -> None:
        self._budget, self._runs = budget, runs
        self._jobs, self._next, self._started = JobStates(), 0.0, time.monotonic()
        self._ended: dict[Path, tuple[float, float]] = {}
        self._reason: str | None = None

    def hours(self) -> tuple[float, float]:
        """Core-hours and GPU-hours so far."""
        cores = gpus = 0.0
        for path in self._runs():
            found = self._ended.get(path) or self._read(path)
            cores, gpus = cores + found[0], gpus + found[1]
        return cores, gpus

    def spent(self) -> str | None:
        """Why nothing more may run; None while something may. Looks every LOOK_S seconds."""
        if self._reason is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_S
            self._reason = self._look()
        return self._reason

    def _look(self) -> str | None:
        limits = self._budget
        taken = {"WALL_HOURS": (time.monotonic() - self._started) / 3600}
        if limits.CORE_HOURS is not None or limits.GPU_HOURS is not None:
            taken["CORE_HOURS"], taken["GPU_HOURS"] = self.hours()
        for name, hours in taken.items():
            limit = getattr(limits, name)
            if limit is not None and hours >= limit:
                what = name.lower().replace("_", "-")
                return f"budget: {hours:.3g} of TUNE.BUDGET.{name}'s {limit:g} {what} are spent"
        return None

    def _read(self, path: Path) -> tuple[float, float]:
        if not run_status.is_run(path):
            return 0.0, 0.0
        found = run_status.read(path, self._jobs)
        hours = found.core_hours, found.gpu_hours
        if found.state == "done":
            self._ended[path] = hours
        return hours


def begun(runs: Iterable[Path]) -> int:
    """How many of these run directories a trial has begun in."""
    return sum(run_status.is_run(path) for path in runs)
