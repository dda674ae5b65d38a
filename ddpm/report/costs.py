"""Cost of trainings: core- or GPU-seconds, wall time, memory, energy, and the Pareto front.

A cell is on the front when no other cell is both cheaper and better (Pareto efficiency).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import isfinite, log, sqrt

import numpy as np

from ddpm import runs
from ddpm.report.labels import duration, size
from ddpm.report.reading import SweepResults, TrialResult, mapping, number, sequence
from ddpm.report.scatter import tukey_quantile
from ddpm.runs import gpus_of, read_facts, waited_seconds

ALIKE = 1.1  # costs within this ratio count as equal
# Without a second seed: the load of a machine alone made core-seconds of one network differ by 1.5.
ALIKE_UNREPEATED = 2.0
PREDICTION_FILE = "prediction.json"


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
    on_gpu = any(
        trial.number("gpu_seconds") is not None or gpus_of(trial.provenance) > 0 for trial in trials
    )
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


@dataclass(frozen=True, kw_only=True)
class PredictedCost:
    """Predicted and measured cost of trials that ended in one go.

    load: of the machine when it was probed.
    """

    trials: int
    unit: str
    seconds: tuple[float, float]
    memory_bytes: tuple[float, float] | None
    wall_seconds: tuple[float, float] | None
    load: float

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Figure, predicted, measured and how much more was measured, of those that have both."""
        figures = (
            (self.unit, self.seconds, lambda value: f"{value:,.0f}"),
            ("peak memory of a trial", self.memory_bytes, size),
            ("wall time", self.wall_seconds, duration),
        )
        return [
            (what, shown(one[0]), shown(one[1]), f"{100 * (one[1] / one[0] - 1):+.0f} %")
            for what, one, shown in figures
            if one is not None and one[0]
        ]

    def __str__(self) -> str:
        said = "; ".join(
            f"{what} {a} predicted, {b} measured ({c})" for what, a, b, c in self.rows()
        )
        return f"Of {self.trials} trials: {said}. Load when probed: {self.load:.1f}."


def predicted_cost(sweep: SweepResults) -> PredictedCost | None:
    """prediction.json beside the ledger; None where nothing was predicted or measured.

    Seconds are those of a trial in its processes, with evaluation and samples; Ray and its start
    are not in them. Interrupted trials are left out: they measured and started oftener than once.
    """
    facts = read_facts(sweep.folder / PREDICTION_FILE)
    predicted = {name: mapping(one) for name, one in mapping(facts.get("trials")).items()}
    both = [
        (predicted[trial.name], trial)
        for trial in sweep.with_status("done")
        if trial.name in predicted
        and len(sequence(trial.provenance.get("attempts"))) == 1
        and trial.number("trial_core_seconds") is not None
    ]
    if not both:
        return None
    gpus = max(number(one["gpu_seconds"]) / number(one["seconds"]) for one, _ in both)
    kind, own = ("gpu_seconds", "trial_seconds") if gpus else ("core_seconds", "trial_core_seconds")
    measured = (gpus or 1.0) * sum(trial.number(own) or 0.0 for _, trial in both)
    peaks = [trial.number("peak_memory_bytes") for _, trial in both]
    known = [peak for peak in peaks if peak is not None]
    wall = number(facts.get("measured_wall_seconds")) if len(both) == len(predicted) else 0.0
    return PredictedCost(
        trials=len(both),
        unit="GPU-seconds" if gpus else "core-seconds",
        seconds=(sum(number(one[kind]) for one, _ in both), measured),
        memory_bytes=(max(number(one["memory_bytes"]) for one, _ in both), max(known))
        if len(known) == len(peaks)
        else None,
        wall_seconds=(number(facts["wall_seconds"]), wall) if wall > 0 else None,
        load=number(facts.get("load", 0.0)),
    )
