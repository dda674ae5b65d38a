"""Cost of trainings: core- or GPU-seconds, wall time, memory, energy, and the Pareto front.

A cell is on the front when no other cell is both cheaper and better (Pareto efficiency).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt

import numpy as np

from ddpm import runs
from ddpm.report.reading import TrialResult
from ddpm.report.scatter import tukey_quantile
from ddpm.runs import used_gpus, waited_seconds

ALIKE = 1.1  # costs within this ratio count as equal
# Without a second seed: the load of a machine alone made core-seconds of one network differ by 1.5.
ALIKE_UNREPEATED = 2.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a cell's trials, mean over seeds; None where it was not measured."""

    compute_seconds: float | None
    unit: str  # core-seconds | GPU-seconds
    images_per_s: float | None
    is_packed: bool
    peak_memory_bytes: float | None
    seconds: float | None
    energy_joules: float | None = None

    @property
    def device(self) -> str:
        """Core or GPU: of which the seconds are."""
        return self.unit.removesuffix("-seconds")

    def speed(self, packed: str = "") -> str:
        """Images/s, marked where trials ran side by side."""
        if self.images_per_s is None:
            return "\u2013"
        return f"{self.images_per_s:,.0f}" + packed * self.is_packed


def cost(trials: Collection[TrialResult]) -> Cost:
    """The cost of trials of one cell."""
    on_gpu = any(used_gpus(trial.summary, trial.provenance) for trial in trials)
    return Cost(
        compute_seconds=_mean([compute_seconds(trial) for trial in trials]),
        unit="GPU-seconds" if on_gpu else "core-seconds",
        images_per_s=_mean([trial.number("images_per_s") for trial in trials]),
        is_packed=any(trial.summary.get("packed") is True for trial in trials),
        peak_memory_bytes=_mean([trial.number("peak_memory_bytes") for trial in trials]),
        seconds=_mean([waited_seconds(trial.summary) for trial in trials]),
        energy_joules=_mean([trial.number("energy_joules") for trial in trials]),
    )


def compute_seconds(trial: TrialResult) -> float | None:
    """GPU-seconds of a trial that had GPUs, else core-seconds."""
    return runs.compute_seconds(trial.summary, trial.provenance)


def cheapest(costs: Sequence[Sequence[float]], confidence: float) -> list[int]:
    """Places of the cells that nothing shows to cost more than the one with the lowest mean.

    costs: of each cell's trainings, a seed each. Their scatter over seeds is that of all cells
    together, in logarithms (Tukey); a machine's load is no property of a cell.
    """
    logs = [np.log(some) for some in costs]
    means = [float(some.mean()) for some in logs]
    least = int(np.argmin(means))
    dof = sum(len(some) - 1 for some in logs)
    if dof == 0:
        return [k for k, mean in enumerate(means) if mean - means[least] <= log(ALIKE_UNREPEATED)]
    error = sqrt(sum(float(((some - some.mean()) ** 2).sum()) for some in logs) / dof)
    width = error * tukey_quantile(confidence, max(len(costs), 2), float(dof))

    def is_alike(place: int) -> bool:
        own = width * sqrt(1 / len(logs[place]) + 1 / len(logs[least]))
        return means[place] - means[least] <= max(own, log(ALIKE))

    return [k for k in range(len(costs)) if is_alike(k)]


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points no other is below in one and not above in the other, cheapest first."""
    found: list[int] = []
    lowest = float("inf")
    for place in sorted(range(len(costs)), key=lambda k: (costs[k], values[k])):
        if isfinite(costs[place]) and values[place] < lowest:
            found.append(place)
            lowest = values[place]
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
