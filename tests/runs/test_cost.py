"""What a training cost is the sum of its windows, and unknown where a window is."""

import math

import pytest
import torch

from ddpm.runs.machine import cost, watts

ROW = {"time/seconds": 2.0, "time/core_seconds": 3.0}
GPU = ROW | {"time/gpu_seconds": 8.0, "time/energy_joules": 100.0}


def test_on_cpus_there_are_no_gpu_seconds_and_energy_is_unknown() -> None:
    assert cost([ROW, ROW], 1.0) == {"seconds": 4.0, "core_seconds": 6.0, "energy_joules": None}
    assert math.isnan(watts(torch.device("cpu")))


def test_a_share_of_a_gpu_costs_its_share() -> None:
    found = cost([GPU, GPU], 0.25)
    assert (found["gpu_seconds"], found["energy_joules"]) == (4.0, 50.0)
    assert found["core_seconds"] == 6.0


def test_energy_is_unknown_where_a_window_is() -> None:
    """metrics.jsonl has null where nothing measured."""
    found = cost([GPU, GPU | {"time/energy_joules": None}], 1.0)
    assert found["gpu_seconds"] == 16.0 and found["energy_joules"] is None


@pytest.mark.gpu
def test_a_gpu_draws_power_or_says_nothing() -> None:
    found = watts(torch.device("cuda", 0))
    assert math.isnan(found) or 1 < found < 3000
