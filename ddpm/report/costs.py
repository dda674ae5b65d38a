"""What trainings cost: core- or GPU-seconds, wall time, memory, energy, and the Pareto front.

A cell is on the front when no other cell is both cheaper and better (Pareto efficiency).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from ddpm.report.data import Trial
from ddpm.report.files import number


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell's trials took, mean over seeds; None where it was not measured."""

    compute_seconds: float | None
    unit: str  # core-seconds | GPU-seconds
    images_per_s: float | None
    is_packed: bool
    peak_memory_bytes: float | None
    seconds: float | None
    energy_joules: float | None = None


def cost(trials: Sequence[Trial]) -> Cost:
    """The cost of trials of one cell."""
    return Cost(
        compute_seconds=_mean([compute_seconds(trial) for trial in trials]),
        unit="GPU-seconds" if any(map(is_on_gpu, trials)) else "core-seconds",
        images_per_s=_mean([trial.number("images_per_s") for trial in trials]),
        is_packed=any(trial.summary.get("packed") is True for trial in trials),
        peak_memory_bytes=_mean([trial.number("peak_memory_bytes") for trial in trials]),
        seconds=_mean([trial.number("seconds") for trial in trials]),
        energy_joules=_mean([trial.number("energy_joules") for trial in trials]),
    )


def gpus(trial: Trial) -> float:
    """GPUs a trial was given; 0 where it ran on cores, or where that was not recorded."""
    found = [number(trial.provenance.get(key)) for key in ("workers", "gpus_per_worker")]
    return found[0] * found[1] if all(map(isfinite, found)) else 0.0


def is_on_gpu(trial: Trial) -> bool:
    """Whether a trial's compute is counted in GPU-seconds."""
    return trial.number("gpu_seconds") is not None or gpus(trial) > 0


def compute_seconds(trial: Trial) -> float | None:
    """GPU-seconds of a trial that had GPUs, else core-seconds."""
    if (measured := trial.number("gpu_seconds")) is not None:
        return measured
    seconds = trial.number("seconds")
    if gpus(trial) and seconds is not None:
        return seconds * gpus(trial)
    return trial.number("core_seconds")


def front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Places of the points no other is below in one and not above in the other, cheapest first."""
    found: list[int] = []
    lowest = float("inf")
    for place in sorted(range(len(costs)), key=lambda k: (costs[k], values[k])):
        if isfinite(costs[place]) and values[place] < lowest:
            found.append(place)
            lowest = values[place]
    return found


def speed(of: Cost) -> str:
    """Images/s, with a star where trials ran side by side."""
    if of.images_per_s is None:
        return "\u2013"
    return f"{of.images_per_s:,.0f}" + ("*" if of.is_packed else "")


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
