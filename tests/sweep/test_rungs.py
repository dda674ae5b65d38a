"""ddpm.sweep.comparable: where trials are compared while they train, and by what."""

from math import inf, nan

from ddpm.sweep.comparable import Ladder, cost

LADDER = Ladder(metric="mean_log10_mse", every=20, total=50)


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
