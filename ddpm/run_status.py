"""One run as its directory shows it, to whoever looks from wherever; nothing is written.

A run is alive when its lock is held. Where the lock of another host cannot be seen, a run is alive
that has not let its lock go, whose job SLURM calls running (where SLURM can be asked), and that has
written something lately.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm import lock, stage_notes
from ddpm.job_states import JobStates
from ddpm.run_log import FAILED
from ddpm.run_names import CONFIG, DONE, LOCK, MEMORY, METRICS, PROVENANCE

_TAIL_BYTES = 1 << 16
_SILENCE_S = 300.0  # a run that says nothing for so long, and for some reports' time, is dead


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What is known of a run.

    state: running, done, failed or stopped.  note: what a reader should know besides.  eta_s: until
    its last step.  gpu_hours, core_hours: what its attempts held, one of them 0.
    """

    state: str
    step: int = 0
    total: int | None = None
    loss: float | None = None
    images_per_s: float | None = None
    eta_s: float | None = None
    seconds_per_step: float | None = None
    node: str = ""
    job: str | None = None
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    note: str = ""


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory, of a run that has just begun too."""
    return (path / CONFIG).is_file() or (path / LOCK).is_file()


def read(path: Path, jobs: JobStates) -> RunStatus:
    """The run in the directory `path`."""
    facts, row = read_json(path / PROVENANCE), _last_row(path / METRICS)
    done, failed = read_json(path / DONE), read_json(path / FAILED)
    held_by = lock.signature(path / LOCK)
    alive = _is_alive(path, held_by, row, jobs)
    latest = held_by if "host" in held_by else facts
    job = latest.get("job")
    state = "running" if alive else "done" if done else "failed" if failed else "stopped"
    total = facts.get("total_steps") or (done.get("summary") or {}).get("steps")
    pace = _seconds_per_step(row)
    step = int(row.get("step", 0))
    left = total - step if total else None
    notes = _Notes(path=path, step=step, total=total, jobs=jobs, job=job, failed=failed)
    return RunStatus(
        state=state,
        step=step,
        total=total,
        loss=row.get("loss"),
        images_per_s=row.get("time/images_per_s"),
        eta_s=left * pace if state == "running" and left is not None and pace else None,
        seconds_per_step=pace,
        node=latest.get("host") or "",
        job=job,
        note=notes.text(state),
        **_hours(facts.get("attempts", []), _end(path, alive, done, failed)),
    )


@dataclass(frozen=True, kw_only=True)
class _Notes:
    """The words beside a state."""

    path: Path
    step: int
    total: int | None
    jobs: JobStates
    job: str | None
    failed: dict[str, Any] = field(default_factory=dict)

    def text(self, state: str) -> str:
        if state == "running":
            return self._running()
        if state == "failed":
            lines = str(self.failed.get("reason", "")).strip().splitlines() or ["unknown"]
            return f"{lines[-1]} (exit code {self.failed.get('exit_code')}){self._slurm()}"
        if state == "stopped":
            sign = datetime.fromtimestamp(_last_sign(self.path))
            return f"since {sign:%Y-%m-%d %H:%M}{self._slurm()}"
        return ""

    def _running(self) -> str:
        if staging := stage_notes.read(self.path):
            return staging
        if self.total and self.step >= self.total:
            return "evaluating"
        return "" if self.step else "starting"

    def _slurm(self) -> str:
        end = self.jobs.end(self.job)
        is_news = end and end != f"FAILED, exit code {self.failed.get('exit_code')}"
        return f"; job {self.job}: {end}" if is_news else ""


def _is_alive(path: Path, held_by: dict[str, Any], row: dict[str, Any], jobs: JobStates) -> bool:
    held = lock.is_held(path / LOCK)
    if held or not held_by:  # locked for all to see, or let go in order
        return bool(held)
    if held is not None and held_by.get("host") == socket.gethostname():
        return False
    if jobs.is_known and held_by.get("job"):
        queued = jobs.living(held_by["job"])
        if queued is None or queued.is_waiting:
            return False
    patience = max(_SILENCE_S, 5 * (row.get("time/seconds") or 0))
    return time.time() - _last_sign(path) < patience


def _last_sign(path: Path) -> float:
    """When the run last wrote, seconds since 1970."""
    times = [0.0]
    for name in (METRICS, MEMORY, PROVENANCE, DONE, FAILED, LOCK):
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def _end(path: Path, alive: bool, done: dict[str, Any], failed: dict[str, Any]) -> datetime:
    """When the last attempt ended; now, if it has not."""
    said = None if alive else done.get("ended") or failed.get("ended")
    if said:
        return datetime.fromisoformat(said)
    return datetime.fromtimestamp(time.time() if alive else _last_sign(path)).astimezone()


def _hours(attempts: list[dict[str, Any]], end: datetime) -> dict[str, float]:
    """GPU-hours of the attempts, or core-hours of those that had no GPU: held, busy or not."""
    found = {"gpu_hours": 0.0, "core_hours": 0.0}
    for attempt in attempts:
        stop = datetime.fromisoformat(attempt["ended"]) if "ended" in attempt else end
        begin = datetime.fromisoformat(attempt["started"])
        hours = max(0.0, (stop - begin).total_seconds()) / 3600 * attempt.get("workers", 1)
        gpus = attempt.get("gpus_per_worker", 0)
        found["gpu_hours" if gpus else "core_hours"] += hours * (
            gpus or attempt.get("cpus_per_worker", 1)
        )
    return found


def _seconds_per_step(row: dict[str, Any]) -> float | None:
    with suppress(KeyError, TypeError, ZeroDivisionError):
        return float(row["images"] / row["step"] / row["time/images_per_s"])
    return None


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole row of a file of JSON lines; only its end is read."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL_BYTES))
        whole = file.read().rpartition(b"\n")[0]
        row = json.loads(whole.rpartition(b"\n")[2])
        return row if isinstance(row, dict) else {}
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or none that can be read."""
    found = _parsed(path)
    return found if isinstance(found, dict) else {}


def read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list in a file, likewise."""
    found = _parsed(path)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _parsed(path: Path) -> object:
    with suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None
