"""Memory is measured in bytes and can be reset; a training's cost is the sum of its windows."""

import csv
import math
import mmap
import platform
import threading
from pathlib import Path

import pytest
import torch

from ddpm.runs import machine
from ddpm.runs.cost import training_cost
from ddpm.runs.machine import watts

MIB = 1 << 20
ROW = {"time/seconds": 2.0, "time/core_seconds": 3.0}
GPU = ROW | {"time/gpu_seconds": 8.0, "time/energy_joules": 100.0}


def pages(size: int) -> mmap.mmap:
    """Memory fresh from the system: what malloc gives may be of what was freed before."""
    block = mmap.mmap(-1, size)
    for start in range(0, size, mmap.PAGESIZE):
        block[start] = 1
    return block


def test_usage_sees_what_is_allocated() -> None:
    before = machine.memory_usage()["process_rss"]
    block = pages(64 * MIB)
    during = machine.memory_usage()
    assert 60 * MIB < during["process_rss"] - before < 80 * MIB
    assert during["process_rss"] <= during["process_peak"]
    assert during["system_used"] < during["system_total"]
    block.close()


@pytest.mark.slow
def test_the_peak_remembers_and_can_be_reset() -> None:
    machine.reset_peak()
    start = machine.peak_bytes()
    pages(64 * MIB).close()
    assert machine.peak_bytes() - start > 50 * MIB
    machine.reset_peak()
    assert machine.peak_bytes() - start < 40 * MIB


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back when asked")
def test_what_an_earlier_thread_freed_is_not_counted() -> None:
    kept = []

    def train() -> None:
        blocks = [b"x" * (60_000 + k) for k in range(2000)]  # of this thread's own arena
        kept.append(blocks[-1])  # its end stays in use

    machine.reset_peak()
    start = machine.peak_bytes()
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert machine.peak_bytes() - start > 100 * MIB
    machine.reset_peak()
    assert machine.peak_bytes() - start < 40 * MIB


def test_rows_name_attempt_step_and_stage_and_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "memory.csv"
    machine.MemoryLog(path, attempt=1).record("start", 0)
    log = machine.MemoryLog(path, attempt=2)
    for stage, step in (("train", 10), ("checkpoint", 10), ("train", 20)):
        log.record(stage, step)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == machine.COLUMNS
    assert [(row["attempt"], row["stage"], row["step"]) for row in rows] == [
        ("1", "start", "0"),
        ("2", "train", "10"),
        ("2", "checkpoint", "10"),
        ("2", "train", "20"),
    ]
    assert machine.read_memory_rows(path).keys() == {10, 20}
    assert machine.read_memory_rows(path)[20]["process_rss"] == int(rows[3]["process_rss"])
    assert machine.read_memory_rows(tmp_path / "missing.csv") == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_is_measured_where_there_is_one(tmp_path: Path) -> None:
    machine.reset_peak()
    block = torch.zeros(64 * MIB, dtype=torch.uint8, device="cuda")
    used = machine.memory_usage()
    assert used["gpu_peak"] >= used["gpu_allocated"] >= 64 * MIB
    assert used["gpu_reserved"] >= used["gpu_allocated"]
    assert machine.peak_bytes() == used["gpu_peak"]
    del block
    torch.cuda.empty_cache()
    machine.reset_peak()
    assert machine.peak_bytes() < 64 * MIB


def test_a_cost_is_the_sum_of_windows_and_energy_unknown_where_one_is() -> None:
    on_cpu = {"seconds": 4.0, "core_seconds": 6.0, "energy_joules": None}
    assert training_cost([ROW, ROW], 1.0) == on_cpu and math.isnan(watts(torch.device("cpu")))
    shared = training_cost([GPU, GPU], 0.25)
    assert shared == {
        "seconds": 4.0,
        "core_seconds": 6.0,
        "gpu_seconds": 4.0,
        "energy_joules": 50.0,
    }
    # metrics.jsonl has null where nothing measured
    found = training_cost([GPU, GPU | {"time/energy_joules": None}], 1.0)
    assert found["gpu_seconds"] == 16.0 and found["energy_joules"] is None


@pytest.mark.gpu
def test_a_gpu_draws_power_or_says_nothing() -> None:
    found = watts(torch.device("cuda", 0))
    assert math.isnan(found) or 1 < found < 3000
