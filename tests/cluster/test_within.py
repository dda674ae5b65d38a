"""TUNE.WITHIN as a user runs it: tuned within each cell, then compared; again: nothing is done."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.cluster.test_sweep_run import attempts, command, outcomes

RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.timeout(1800)]


def test_cells_are_compared_at_the_rates_chosen_within_them(tmp_path: Path) -> None:
    argv = command(
        tmp_path,
        "[cosine]",
        **{
            f"SPACE.{RATE}": "{loguniform: [1.0e-4, 1.0e-1]}",
            **{"TUNE.WITHIN": "cell", "TUNE.TRIALS": 2, "SEEDS": "[0, 1]"},
        },
    )
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out" / "sweeps" / "small"
    chosen = json.loads((folder / "within.json").read_text())["cells"]
    facts = json.loads((folder / "sweep.json").read_text())["planned"]
    tuning = [one for one in facts if one.get("is_tuning")]
    compared = [one for one in facts if not one.get("is_tuning")]
    assert len(chosen) == 2 and len(tuning) == 4 and len(compared) == 4
    assert {one["seed"] for one in tuning} == {1000} and {one["steps"] for one in tuning} == {8}
    assert {one["seed"] for one in compared} == {0, 1} and {one["steps"] for one in compared} == {
        24
    }
    rates = {one["cell"]["TRAINING.PRED_TYPE"]: one["chosen"][RATE] for one in chosen}
    for one in compared:
        assert RATE not in one["cell"]
        assert one["chosen"][RATE] == rates[one["cell"]["TRAINING.PRED_TYPE"]]
    assert "Tuned within cells" in (folder / "report.md").read_text()

    before = attempts(tmp_path)
    again = subprocess.run(argv, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert attempts(tmp_path) == before and set(outcomes(tmp_path).values()) == {"done"}
