"""ddpm.rungs: where trials are compared while they train, and by what."""

from dataclasses import dataclass, field
from math import inf, nan

from ddpm.ledger import Outcome
from ddpm.rungs import Ladder, Pause, cost

LADDER = Ladder(metric="mean_log10_mse", every=20, total=50)


@dataclass
class Report:
    step: int
    images: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def row(step: int, value: float | None = -1.0) -> dict[str, object]:
    return {"step": step, "images": 8 * step, "val_mean_log10_mse": value, "loss": 0.5}


def test_rungs_lie_after_equally_many_steps_and_at_the_end() -> None:
    rows = [row(10), row(20), {"step": 30, "images": 240, "loss": 1.0}, row(40), row(50)]
    found = LADDER.rungs(rows)
    assert [(rung.evaluation, rung.step, rung.images) for rung in found] == [
        (1, 20, 160),
        (2, 40, 320),
        (3, 50, 400),
    ]
    assert LADDER.evaluations == 3


def test_a_number_that_is_not_finite_is_the_worst() -> None:
    """NaN in a report, null in the file that keeps it."""
    assert [cost("loss", value) for value in (nan, inf, None)] == [inf] * 3
    (rung,) = LADDER.rungs([row(20, None)])
    assert rung.value == inf


def test_lower_is_better_for_every_metric() -> None:
    assert cost("class_accuracy", 0.9) < cost("class_accuracy", 0.8)
    assert cost("fid_infinity", 1.0) < cost("fid_infinity", 2.0)


def test_a_pause_comes_at_its_rung_and_records_nothing() -> None:
    pause = Pause(LADDER, until=2)
    for step, stops in ((20, False), (30, False), (40, True)):
        metrics = {} if step == 30 else {"val_mean_log10_mse": -1.0}
        pause.on_report(Report(step=step, metrics=metrics))
        assert pause.stops() is stops
    assert pause.outcome(Outcome(trial="a", cell={}, seed=0, run_dir="")) is None
