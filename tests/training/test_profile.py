"""TRAINING.PROFILE writes a trace of as many steps as it says."""

import json
from pathlib import Path

import torch

from ddpm.training.step import WARMUP_STEPS, profiler


def test_a_trace_of_the_steps_asked_for_is_written(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with profiler(path, 3) as on_step:
        assert on_step is not None
        for _ in range(WARMUP_STEPS + 5):
            torch.ones(4).cumsum(0)
            on_step()
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::cumsum" for event in events) == 3


def test_profile_zero_costs_nothing(tmp_path: Path) -> None:
    with profiler(tmp_path / "profile.json", 0) as on_step:
        assert on_step is None
    assert not list(tmp_path.iterdir())
