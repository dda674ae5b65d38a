"""ddpm.cluster.cost: what trials held is counted from their run directories, and stops at the limit."""

import json
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ddpm.cluster.cost import Meter, begun
from ddpm.errors import InputError
from ddpm.sweep.plan import load_sweep
from ddpm.sweep.spec import Budget
from tests.support.tree import ROOT

START = datetime(2026, 1, 1).astimezone()


def make_run(path: Path, minutes: list[float], **facts: object) -> Path:
    """A run directory whose attempts took so many minutes; the last has said that it is done."""
    path.mkdir()
    attempts = [
        {
            "started": START.isoformat(),
            "ended": (START + timedelta(minutes=one)).isoformat(),
            **{"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0, **facts},
        }
        for one in minutes
    ]
    (path / "training_config.yaml").write_text("")
    (path / "provenance.json").write_text(json.dumps({"attempts": attempts}))
    ended = (START + timedelta(minutes=minutes[-1])).isoformat()
    (path / "DONE.json").write_text(json.dumps({"ended": ended, "summary": {}}))
    return path


def test_hours_are_those_held_by_all_attempts(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", [30, 60], cpus_per_worker=2),
        make_run(tmp_path / "b", [60], workers=4, gpus_per_worker=0.5),
        tmp_path / "not_begun",
    ]
    assert Meter(Budget(), lambda: runs).hours() == pytest.approx((3.0, 2.0))
    assert begun(runs) == 2


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(WALL_HOURS=1e-12), "of TUNE.BUDGET.WALL_HOURS's 1e-12 wall-hours are spent"),
    ],
)
def test_a_budget_is_spent_at_its_limit(tmp_path: Path, budget: Budget, words: str) -> None:
    runs = [
        make_run(tmp_path / "a", [60]),
        make_run(tmp_path / "b", [30], gpus_per_worker=1),
    ]
    reason = Meter(budget, lambda: runs).spent()
    assert reason is not None and words in reason


def test_what_is_not_limited_is_never_spent(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a", [6000])]
    assert Meter(Budget(), lambda: runs).spent() is None
    assert Meter(Budget(WALL_HOURS=1), lambda: runs).spent() is None


def test_a_budget_is_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "test.yaml"
    base = os.path.join(ROOT, "configs", "digits.yaml")
    path.write_text(f"BASE: {base}\nGRID: {{TRAINING.LABEL_DROP: [0, 0.1]}}\n")
    loaded = load_sweep(path, ["TUNE.BUDGET.WALL_HOURS=0.5", "TUNE.BUDGET.TRIALS=3"])
    assert loaded.tune.BUDGET == Budget(WALL_HOURS=0.5, TRIALS=3)
    with pytest.raises(InputError, match="TUNE.BUDGET.WALL_HOURS is 0; allowed"):
        load_sweep(path, ["TUNE.BUDGET.WALL_HOURS=0"])
