"""Cost of a sweep as it was predicted before its first trial, beside what was measured."""

from dataclasses import dataclass

from ddpm.report.labels import duration, size
from ddpm.report.reading import SweepResults, mapping, number, sequence
from ddpm.runs import read_facts

PREDICTION_FILE = "prediction.json"


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
