"""The numbers of a run: metrics.jsonl, the truth, and log.csv, the same for spreadsheets.

One JSON object a line: {"step": 100, "images": 6400, "loss": 0.41, ..., "time/seconds": 7.9}.
Keys that start with "time/" or "memory/" differ from one execution to the next; all others are
reproducible. A number that is not finite is null. log.csv is derived, and rewritten when in doubt.
"""

import csv
import ctypes
import gc
import io
import json
import logging
import math
import resource
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from ddpm.config import Config
from ddpm.distributed import Group
from ddpm.errors import DdpmError, Interrupted, LockedError, StorageError
from ddpm.runs import storage

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl; a last line that a kill has cut is left out."""
    return NewRows(path).read()


class NewRows:
    """The rows of a metrics.jsonl that another process writes, as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def read(self) -> list[Row]:
        """What came since; from the first one when a resume has cut the file back."""
        if not self._path.exists():
            return []
        if self._path.stat().st_size < self._offset:
            self._offset = 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


class MetricsLog:
    """Both files in the folder of a run."""

    def __init__(self, folder: Path) -> None:
        self.path, self.table_path = folder / "metrics.jsonl", folder / "log.csv"
        self._columns: list[str] = []

    def rows(self) -> list[Row]:
        """All rows, oldest first."""
        return read_rows(self.path)

    def rewind(self, step: int) -> int:
        """Drops the rows after `step` and what a kill has torn; the number of rows dropped.

        The steps after it are about to be repeated, so that each appears exactly once.
        """
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        content = "".join(f"{_line(row)}\n" for row in kept).encode()
        if self.path.exists() and self.path.read_bytes() != content:
            storage.write_bytes(self.path, content)
        self._columns = _columns(kept)
        if kept or self.table_path.exists():
            storage.write_text(self.table_path, _table(self._columns, kept))
        return len(rows) - len(kept)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row to both files, durably."""
        clean: Row = without_nan(row)
        storage.append_line(self.path, _line(clean))
        if self._columns and clean.keys() <= set(self._columns):
            storage.append_line(self.table_path, _cells(self._columns, clean))
        else:
            rows = self.rows()
            self._columns = _columns(rows)
            storage.write_text(self.table_path, _table(self._columns, rows))


def without_nan(value: Any) -> Any:
    """The value with numbers that JSON lacks, NaN and infinity, as None."""
    if isinstance(value, Mapping):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False)


def _columns(rows: Iterable[Row]) -> list[str]:
    """Every key, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row))


def _cells(columns: list[str], row: Row) -> str:
    buffer = io.StringIO()
    values = ["" if row.get(column) is None else row[column] for column in columns]
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _table(columns: list[str], rows: Iterable[Row]) -> str:
    header = dict(zip(columns, columns, strict=True))
    return "".join(f"{_cells(columns, row)}\n" for row in [header, *rows]) if columns else ""


# --------
# What a process takes of the machine's memory: DDPM v3's MemoryLogger, as rows of memory.csv.
#
# All sizes in bytes. The process's peak is its high-water mark since `reset_peak`, because a reused
# process would remember the run before; a GPU's is what torch had allocated at most.

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
        values |= usage()
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


def usage() -> Mapping[str, int]:
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
    found = usage()
    return found.get("gpu_peak", found["process_peak"])


def _process_peak() -> int:
    """The high-water mark of the resident memory; since the process began if Linux cannot say."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------
# What a run says of itself: train.log, and FAILED.json where it ended in an error.
#
# FAILED.json: {"reason": the error's text, "exit_code": that of the command, "ended": when}. The next
# start removes it.

LOG = "train.log"
FAILED = "FAILED.json"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextmanager
def logging_to(run_dir: Path) -> Iterator[None]:
    """While it lasts, what `ddpm` logs goes to train.log too."""
    handler = logging.FileHandler(run_dir / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("ddpm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def failure_recorded(run_dir: Path) -> Iterator[None]:
    """Notes an error that passes through, unless the run may simply go on or is another's."""
    try:
        yield
    except (Interrupted, LockedError):
        raise
    except Exception as error:
        if run_dir.is_dir():  # an error before the first start has no run to belong to
            record_failure(run_dir, error)
        raise


def record_failure(run_dir: Path, error: Exception) -> None:
    """Writes FAILED.json and an ERROR line of train.log, as far as the storage still takes them."""
    text, now = reason(error), datetime.now().astimezone()
    code = error.exit_code if isinstance(error, DdpmError) else 1
    with suppress(StorageError):
        line = " | ".join(text.splitlines())
        stamp = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
        storage.append_line(run_dir / LOG, f"{stamp} ERROR exit code {code}: {line}")
        facts = {"reason": text, "exit_code": code, "ended": now.isoformat(timespec="seconds")}
        storage.write_json(run_dir / FAILED, facts)


def failure(run_dir: Path) -> dict[str, Any]:
    """What FAILED.json says; empty for a run that has not failed."""
    return storage.read_json(run_dir / FAILED)


def reason(error: BaseException) -> str:
    """An error in words: what the user is told, else its type, text and place in the code."""
    if isinstance(error, DdpmError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


# --------
# What a training costs: core- and GPU-seconds, and the energy of GPUs that tell it.


class Began:
    """The clocks when a worker began its training."""

    def __init__(self) -> None:
        self._wall, self._cores, self._others = time.monotonic(), time.process_time(), 0.0

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
    """Power that a whole GPU draws now, whoever uses it; NaN where nothing tells.

    NVIDIA's management library tells, through PyTorch, where its Python package (nvidia-ml-py) is
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


def cost(rows: Sequence[Mapping[str, float | None]], share: float) -> dict[str, float | None]:
    """Seconds, core_seconds, gpu_seconds and energy_joules of a training, from its rows of metrics.

    share: of a GPU, that each worker had. gpu_seconds are left out on CPUs; energy is None where a
    window was not measured. It is power at the end of each window times its length.
    """
    found: dict[str, float | None] = {
        "seconds": sum(_numbers(rows, "time/seconds")),
        "core_seconds": sum(_numbers(rows, "time/core_seconds")),
    }
    if gpu_seconds := _numbers(rows, "time/gpu_seconds"):
        found["gpu_seconds"] = share * sum(gpu_seconds)
    joules = _numbers(rows, "time/energy_joules")
    found["energy_joules"] = share * sum(joules) if joules and len(joules) == len(rows) else None
    return found


def _numbers(rows: Sequence[Mapping[str, float | None]], name: str) -> list[float]:
    return [value for row in rows if (value := row.get(name)) is not None]
