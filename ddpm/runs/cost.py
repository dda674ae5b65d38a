"""Cost of a training: seconds, core- and GPU-seconds and energy, from what its run has written."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def training_cost(
    rows: Sequence[Mapping[str, float | None]], share: float
) -> dict[str, float | None]:
    """Seconds, core_seconds, gpu_seconds and energy_joules of a training, from its rows of metrics.

    share: of a GPU, that each worker had. gpu_seconds are left out on CPUs; energy is None where a
    window was not measured. It is power at the end of each window times its length.
    """
    found: dict[str, float | None] = {
        "seconds": sum(_numbers(rows, "time/seconds")),
        "core_seconds": sum(_numbers(rows, "time/core_seconds")),
    }
    if gpu_seconds := _numbers(rows, "time/gpu_seconds"):
        found["gpu_seconds"] = share * sum(gpu_seconds)
    joules = _numbers(rows, "time/energy_joules")
    found["energy_joules"] = share * sum(joules) if joules and len(joules) == len(rows) else None
    return found


def compute_seconds(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> float | None:
    """GPU-seconds of a finished training that had GPUs, else core-seconds, of all it did: training,
    evaluation and samples. Of one that was not a trial, or is old, those of its training alone.
    """
    gpus, waited = gpus_of(provenance), waited_seconds(summary)
    if gpus and waited is not None:
        return waited * gpus
    return _first(summary, "gpu_seconds", "trial_core_seconds", "core_seconds")


def waited_seconds(summary: Mapping[str, Any]) -> float | None:
    """Seconds from a training's start to its end; of an old one, of its steps alone."""
    return _first(summary, "trial_seconds", "seconds")


def gpus_of(provenance: Mapping[str, Any]) -> float:
    """GPUs a training was given; 0 where it ran on cores, or where that was not recorded."""
    return math.prod(_first(provenance, key) or 0.0 for key in ("workers", "gpus_per_worker"))


def used_gpus(summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> bool:
    """True where `compute_seconds` are those of GPUs."""
    return _first(summary, "gpu_seconds") is not None or gpus_of(provenance) > 0


def _first(numbers: Mapping[str, Any], *names: str) -> float | None:
    """The first of these that is a finite number."""
    found = (numbers.get(name) for name in names)
    return next((x for x in found if isinstance(x, int | float) and math.isfinite(x)), None)


def _numbers(rows: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    return [value for row in rows if (value := row.get(name)) is not None]
