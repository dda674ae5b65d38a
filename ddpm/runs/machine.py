"""Memory, clocks and power of this process and its GPU; memory.csv.

All sizes in bytes. The process's peak is its high-water mark since `reset_peak`, because a reused
process would remember the run before; a GPU's is what torch had allocated at most.
"""

import csv
import ctypes
import gc
import math
import resource
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from ddpm.config import Config
from ddpm.distributed import Group
from ddpm.runs import storage

COLUMNS = (
    "attempt",
    "step",
    "stage",
    "process_rss",
    "process_peak",
    "system_used",
    "system_total",
    "gpu_allocated",
    "gpu_reserved",
    "gpu_peak",
    "gpu_utilization",
)


class MemoryLog:
    """memory.csv: one row for each stage of training. The GPU's columns stay empty without one."""

    def __init__(self, path: Path, attempt: int) -> None:
        self._path, self._attempt = path, attempt
        if not path.exists():
            storage.write_text(path, ",".join(COLUMNS) + "\n")
        elif not path.read_bytes().endswith(b"\n"):  # a kill has torn the last row
            whole = path.read_bytes().rpartition(b"\n")[0]
            storage.write_bytes(path, whole + b"\n")

    def record(self, stage: str, step: int) -> None:
        """Adds a row: the memory held now, at a stage: start, train, sampling, checkpoint, end."""
        values: dict[str, object] = {"attempt": self._attempt, "step": step, "stage": stage}
        values |= memory_usage()
        row = ",".join(str(values.get(column, "")) for column in COLUMNS)
        storage.append_line(self._path, row)


def read_memory_rows(path: Path) -> dict[int, dict[str, int]]:
    """The memory held at each training step that memory.csv has, by step and column name."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["stage"] == "train"]
    sizes = COLUMNS[COLUMNS.index("process_rss") :]
    return {int(row["step"]): {name: int(row[name]) for name in sizes if row[name]} for row in rows}


def memory_usage() -> Mapping[str, int]:
    """The memory held now by this process, the machine and this process's GPU, by column name."""
    system = psutil.virtual_memory()
    found = {
        "process_rss": psutil.Process().memory_info().rss,
        "process_peak": _process_peak(),
        "system_used": system.total - system.available,
        "system_total": system.total,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {
            "gpu_allocated": torch.cuda.memory_allocated(),
            "gpu_reserved": torch.cuda.memory_reserved(),
            "gpu_peak": torch.cuda.max_memory_allocated(),
        }
        # Needs NVIDIA's management library, which some machines hide.
        with suppress(ImportError, RuntimeError):
            found["gpu_utilization"] = torch.cuda.utilization()
    return found


def reset_peak() -> None:
    """Starts the peaks of this process and its GPU anew, from what is held and not what was.

    A reused process trains each time in a thread of its own, and glibc keeps what earlier threads
    freed: trials would seem to take more and more.
    """
    gc.collect()
    with suppress(AttributeError, OSError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Most memory held at once since `reset_peak`: of the GPU if one is used, else the process."""
    found = memory_usage()
    return found.get("gpu_peak", found["process_peak"])


def _process_peak() -> int:
    """The high-water mark of the resident memory; since the process began if Linux cannot say."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TrainingClock:
    """The clocks when a worker began its training, or went on with it."""

    def __init__(self) -> None:
        self._wall, self._cores, self._others = time.monotonic(), time.process_time(), 0.0

    def went_on_after(self, kept: Mapping[str, float | None]) -> None:
        """Counts the `training_cost` of earlier attempts' steps; what a kill undid is left out."""
        self._wall -= kept["seconds"] or 0.0
        self._cores -= kept["core_seconds"] or 0.0

    def gather(self, group: Group) -> None:
        """Tells rank 0 what the others' cores did; to be called on all workers, at their end."""
        own = 0.0 if group.is_main else time.process_time() - self._cores
        box = torch.tensor([own], dtype=torch.float64, device=group.device)
        self._others = group.sum_(box).item()

    def took(self) -> dict[str, float]:
        """Seconds since, of the wall and of all workers' cores: training and all around it."""
        return {
            "trial_seconds": time.monotonic() - self._wall,
            "trial_core_seconds": time.process_time() - self._cores + self._others,
        }


def watts(device: torch.device) -> float:
    """Power that a whole GPU draws now, whoever uses it; NaN where unknown.

    From NVIDIA's management library, through PyTorch, where its Python package (nvidia-ml-py) is
    installed and the machine does not hide it.
    """
    if device.type != "cuda":
        return math.nan
    try:
        return torch.cuda.power_draw(device) / 1000
    except (ImportError, RuntimeError):
        return math.nan
    except Exception as error:  # the library's own, such as of a part of a GPU, which has no meter
        if type(error).__module__.partition(".")[0] != "pynvml":
            raise
        return math.nan


def gpu_share(config: Config) -> float:
    """The part of a GPU that a worker has."""
    share = config.CLUSTER.GPUS_PER_WORKER
    return 1.0 if share is None else share
