"""What a sweep was predicted to take beside what it took: its prediction.json and the ledger.

Compared are trials that are done and were never interrupted. Their seconds are those of the trial
in its processes, with evaluation and samples; Ray and their start are not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm.report.data import Sweep, Trial
from ddpm.report.files import Value, mapping, number, read_json, sequence
from ddpm.report.labels import duration, size

FILE = "prediction.json"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Predicted and measured, of the figures that have both; load: of the machine when probed."""

    trials: int
    unit: str
    seconds: tuple[float, float] | None
    memory_bytes: tuple[float, float] | None
    wall_seconds: tuple[float, float] | None
    load: float

    def __str__(self) -> str:
        parts = [
            f"{what} {shown(one[0])} predicted, {shown(one[1])} measured ({_percent(one)})"
            for what, one, shown in (
                (self.unit, self.seconds, lambda value: f"{value:,.0f}"),
                ("peak memory of a trial", self.memory_bytes, size),
                ("wall time", self.wall_seconds, duration),
            )
            if one is not None
        ]
        return f"Of {self.trials} trials: {'; '.join(parts)}. Load when probed: {self.load:.1f}."


def compare(sweep: Sweep) -> Comparison | None:
    """The comparison; None where nothing was predicted or nothing has been measured."""
    facts = mapping(read_json(sweep.folder / FILE))
    predicted = {name: mapping(one) for name, one in mapping(facts.get("trials")).items()}
    both = [
        (predicted[trial.name], trial)
        for trial in sweep.with_status("done")
        if trial.name in predicted and _in_one_go(trial)
    ]
    if not both:
        return None
    gpus = max(number(one["gpu_seconds"]) / number(one["seconds"]) for one, _ in both)
    kind = "gpu_seconds" if gpus else "core_seconds"
    own, each = ("trial_seconds", gpus) if gpus else ("trial_core_seconds", 1.0)
    wall = number(facts.get("measured_wall_seconds")) if len(both) == len(predicted) else 0.0
    return Comparison(
        trials=len(both),
        unit="GPU-seconds" if gpus else "core-seconds",
        seconds=(_sum(both, kind), each * sum(trial.number(own) or 0.0 for _, trial in both)),
        memory_bytes=_peaks(both),
        wall_seconds=(number(facts["wall_seconds"]), wall) if wall > 0 else None,
        load=number(facts.get("load", 0.0)),
    )


def _in_one_go(trial: Trial) -> bool:
    """Whether its first attempt finished it, so that its seconds are all there."""
    attempts = sequence(trial.provenance.get("attempts"))
    return len(attempts) == 1 and trial.number("trial_core_seconds") is not None


def _sum(both: Sequence[tuple[Mapping[str, Value], Trial]], kind: str) -> float:
    return sum(number(one[kind]) for one, _ in both)


def _peaks(both: Sequence[tuple[Mapping[str, Value], Trial]]) -> tuple[float, float] | None:
    """The largest of all trials."""
    measured = [trial.number("peak_memory_bytes") for _, trial in both]
    if None in measured:
        return None
    return max(number(one["memory_bytes"]) for one, _ in both), max(m for m in measured if m)


def _percent(pair: tuple[float, float]) -> str:
    """How much more was measured than predicted."""
    return f"{100 * (pair[1] / pair[0] - 1):+.0f} %" if pair[0] else "nothing was predicted"
