"""State of a run, of a sweep or of a whole OUTPUT_DIR, from its files: what runs, what waits, what
failed and why.

Anybody who sees the files may look, on any machine and at any time. Nothing is written, and nothing
missing is guessed. A run is alive when its lock is held. Where the lock of another host cannot be
seen, a run is alive that has not let its lock go, whose job SLURM calls running (where SLURM can be
asked), and that has written something lately.
"""

import json
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ddpm.cluster.slurm import JobStates
from ddpm.errors import InputError
from ddpm.runs import (
    CONFIG_FILE,
    DONE_FILE,
    FAILED_FILE,
    LOCK_FILE,
    MEMORY_FILE,
    METRICS_FILE,
    PROVENANCE_FILE,
    compute_seconds,
    duration,
    read_facts,
    storage,
    used_gpus,
)
from ddpm.sweep import SWEEP_FILE, Ledger, Outcome

STATES = ("running", "queued", "done", "failed", "stopped", "planned")
HEADER = ("state", "training", "step", "loss", "images/s", "left", "node", "job", "hours", "")
_LONGEST_NOTE = 160
_NUMBERS = ("step", "loss", "images/s", "left", "hours")
_INTEREST = ("failed", "running", "queued", "stopped", "planned", "done")
_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "queued": "yellow"}
_RUN = re.compile(r".+_[0-9a-f]{8}")
_TIME = re.compile(r"_\d{8}-\d{6}(-\d+)?_(?=[0-9a-f]{8}$)")  # in a run's name: for people to skip
_TAIL_BYTES = 1 << 16
_SILENCE_S = 300.0  # a run that says nothing for so long, and for some reports' time, is dead


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A training as its files show it.

    state: of STATES.  name: for people.  path: its directory, made or not.  note: words beside it.
    eta_s: until its last step.
    gpu_hours, core_hours: once it is done, what the report says it cost; before, what its attempts
    hold, busy or not. One of them is 0.
    """

    state: str
    name: str = ""
    path: str = ""
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
    """True for a run directory, of a run that has just begun too."""
    return (path / CONFIG_FILE).is_file() or (path / LOCK_FILE).is_file()


def read(path: Path, jobs: JobStates) -> RunStatus:
    """The run in the directory `path`, without its name."""
    facts, row = read_facts(path / PROVENANCE_FILE), _last_row(path / METRICS_FILE)
    done, failed = read_facts(path / DONE_FILE), read_facts(path / FAILED_FILE)
    held_by = storage.signature(path / LOCK_FILE)
    alive = _is_alive(path, held_by, row, jobs)
    latest = held_by if "host" in held_by else facts
    job = latest.get("job")
    imported = facts.get("imported", {})  # weights trained elsewhere
    over = "done" if done or imported else "failed" if failed else "stopped"
    state = "running" if alive else over
    told = done.get("summary") or {}
    total = facts.get("total_steps") or told.get("steps")
    pace = _seconds_per_step(row)
    step = int(row.get("step", 0))
    left = total - step if total else None
    ended = jobs.end(job)
    slurm = f"; job {job}: {ended}" if ended else ""
    note = ""
    if state == "running":
        note = "evaluating" if total and step >= total else "" if step else "starting"
    elif state == "failed":
        lines = str(failed.get("reason", "")).strip().splitlines() or ["unknown"]
        code = failed.get("exit_code")
        note = f"{lines[-1]} (exit code {code})" + slurm * (ended != f"FAILED, exit code {code}")
    elif state == "stopped":
        note = f"since {datetime.fromtimestamp(_last_sign(path)):%Y-%m-%d %H:%M}{slurm}"
    elif imported:
        note = f"imported from {imported.get('file')}"
    cost = compute_seconds(told, facts)
    if cost is None:
        gpu_hours, core_hours = _held(facts.get("attempts", []), _end(path, alive, done, failed))
    else:
        hours = cost / 3600
        gpu_hours, core_hours = (hours, 0.0) if used_gpus(told, facts) else (0.0, hours)
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
        note=note,
        gpu_hours=gpu_hours,
        core_hours=core_hours,
    )


def _is_alive(path: Path, held_by: dict[str, Any], row: dict[str, Any], jobs: JobStates) -> bool:
    held = storage.is_held(path / LOCK_FILE)
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
    """Time of the run's last write, seconds since 1970."""
    times = [0.0]
    for name in (METRICS_FILE, MEMORY_FILE, PROVENANCE_FILE, DONE_FILE, FAILED_FILE, LOCK_FILE):
        with suppress(OSError):
            times.append((path / name).stat().st_mtime)
    return max(times)


def _end(path: Path, alive: bool, done: dict[str, Any], failed: dict[str, Any]) -> datetime:
    """End of the last attempt; now, if it has not ended."""
    said = None if alive else done.get("ended") or failed.get("ended")
    if said:
        return datetime.fromisoformat(said)
    return datetime.fromtimestamp(time.time() if alive else _last_sign(path)).astimezone()


def _held(attempts: list[dict[str, Any]], end: datetime) -> tuple[float, float]:
    """GPU-hours of the attempts, or core-hours of those that had no GPU: held, busy or not."""
    gpu_hours = core_hours = 0.0
    for attempt in attempts:
        stop = datetime.fromisoformat(attempt["ended"]) if "ended" in attempt else end
        begin = datetime.fromisoformat(attempt["started"])
        hours = max(0.0, (stop - begin).total_seconds()) / 3600 * attempt.get("workers", 1)
        if gpus := attempt.get("gpus_per_worker", 0):
            gpu_hours += hours * gpus
        else:
            core_hours += hours * attempt.get("cpus_per_worker", 1)
    return gpu_hours, core_hours


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


def read_list(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON list in a file; empty where there is none that can be read."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return []


@dataclass(frozen=True, kw_only=True)
class StatusSection:
    """The trials of a sweep, or the runs of no sweep; is_driven: its driver runs."""

    title: str
    rows: Sequence[RunStatus]
    is_driven: bool = False


class Status:
    """A folder as it is now; `read` may be called again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, JobStates()
        kinds = {
            "run": is_run(folder),
            "sweep": (folder / SWEEP_FILE).is_file(),
            "output": next(_sweeps(folder), None) or next(_runs(folder), None),
        }
        found = next((kind for kind, fits in kinds.items() if fits), None)
        if found is None:
            raise InputError(
                f"{folder} is no run directory (training_config.yaml), no sweep (sweep.json) and "
                "no OUTPUT_DIR with either (DATA/NETWORK/NAME_ID, sweeps/NAME); give one of them, "
                "three or more digits of a run's id, or latest"
            )
        self._kind = found

    def read(self) -> list[StatusSection]:
        """Every training below the folder."""
        self.jobs.refresh()
        if self._kind == "run":
            return [StatusSection(title="", rows=[self._run(self.folder)])]
        if self._kind == "sweep":
            return [self._sweep(self.folder)]
        sections = [self._sweep(folder) for folder in _sweeps(self.folder)]
        trials = {Path(trial["run_dir"]).name for s in _sweeps(self.folder) for trial in _plan(s)}
        rows = [self._run(path) for path in _runs(self.folder) if path.name not in trials]
        return [*sections, *([StatusSection(title="runs", rows=rows)] if rows else [])]

    def _run(self, path: Path) -> RunStatus:
        path = path.absolute()
        return replace(self._status(path), name=_TIME.sub(" ", path.name), path=str(path))

    def _status(self, path: Path) -> RunStatus:
        """The run in a directory, and whether its job waits to go on with it."""
        found = read(path, self.jobs)
        if found.state in ("stopped", "failed"):
            queued = self.jobs.living(found.job)
            if queued and queued.is_waiting:
                note = f"job {found.job} waits ({queued.reason})"
                return replace(found, state="queued", note=note)
            if self.jobs.learn_ends([found.job]):
                return read(path, self.jobs)
        return found

    def _sweep(self, folder: Path) -> StatusSection:
        outcomes, jobs = Ledger(folder / "ledger").outcomes(), _jobs_of(folder)
        rows = []
        for planned in _plan(folder):
            trial = planned["trial"]
            blank = Outcome(**{key: planned[key] for key in ("trial", "cell", "seed", "run_dir")})
            found = self._trial(planned, outcomes.get(trial), jobs.get(trial, []), folder)
            path = _moved(Path(planned["run_dir"]), folder)
            rows.append(replace(found, name=blank.name, path=str(path)))
        driven = bool(storage.is_held(folder / "sweep.lock"))
        return StatusSection(title=f"sweep {folder.name}", rows=rows, is_driven=driven)

    def _trial(
        self, planned: dict[str, Any], outcome: Outcome | None, jobs: list[str], folder: Path
    ) -> RunStatus:
        path = _moved(Path(planned["run_dir"]), folder)
        found = RunStatus(state="planned", total=planned.get("steps"))
        if is_run(path):
            found = self._status(path)
        if found.state in ("running", "done", "queued"):
            return found
        if outcome and outcome.status == "done":
            return replace(found, state="done", note="")
        # the last of its jobs that lives, else the last
        living = [job for job in jobs if self.jobs.living(job)]
        if living and (queued := self.jobs.living(living[-1])):
            waits = f"waits ({queued.reason})" if queued.is_waiting else "has not come to it yet"
            note = f"job {living[-1]} {waits}"
            return replace(found, state="queued", job=living[-1], note=note)
        if outcome and outcome.status in ("stopped", "unrun"):
            return replace(found, note=outcome.reason or "")
        if outcome and found.state != "failed":
            reason = (outcome.reason or "unknown").strip().splitlines()[-1]
            return replace(found, state="failed", note=reason)
        if found.state == "planned" and jobs:
            self.jobs.learn_ends(jobs[-1:])
            end = self.jobs.end(jobs[-1])
            return replace(found, job=jobs[-1], note=f"job {jobs[-1]}: {end}" if end else "")
        return found


@dataclass(frozen=True, kw_only=True)
class Totals:
    """A few numbers for all. eta_s: until all have ended, None when that cannot be told."""

    counts: dict[str, int]
    gpu_hours: float
    core_hours: float
    eta_s: float | None
    has_ended: bool


def totals(sections: Iterable[StatusSection]) -> Totals:
    """Sums over all trainings."""
    sections = list(sections)
    is_driven = any(section.is_driven for section in sections)
    rows = [row for section in sections for row in section.rows]
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    return Totals(
        counts=counts,
        gpu_hours=sum(row.gpu_hours for row in rows),
        core_hours=sum(row.core_hours for row in rows),
        eta_s=_eta(rows, is_driven),
        has_ended=not (counts["running"] or counts["queued"] or is_driven),
    )


def as_plain(sections: Sequence[StatusSection]) -> dict[str, Any]:
    """All of it as JSON values, for programs."""
    return {
        "sections": [asdict(section) for section in sections],
        "totals": asdict(totals(sections)),
    }


def _eta(rows: Sequence[RunStatus], planned_too: bool) -> float | None:
    """Seconds until all that goes on has ended, at today's pace and so many at a time as now."""
    running = [row for row in rows if row.state == "running"]
    known = [row for row in rows if row.total and row.seconds_per_step]
    waiting = {"queued", *(("planned", "stopped") if planned_too else ())}
    if not running or not known or any(row.eta_s is None for row in running):
        return None
    usual = sum((row.total or 0) * (row.seconds_per_step or 0) for row in known) / len(known)
    each = [row.eta_s or 0.0 for row in running]
    for row in rows:
        if row.state in waiting:
            share = 1 - row.step / row.total if row.total else 1.0
            each.append(usual * share)
    return max(sum(each) / len(running), max(each))


def _plan(folder: Path) -> list[dict[str, Any]]:
    """The trials that sweep.json plans."""
    planned: list[dict[str, Any]] = read_facts(folder / SWEEP_FILE).get("planned", [])
    return planned


def _jobs_of(folder: Path) -> dict[str, list[str]]:
    """Trial -> the jobs that hold it, oldest first, as jobs.json has them."""
    found: dict[str, list[str]] = {}
    for entry in read_list(folder / "jobs.json"):
        for trial in entry.get("trials", []):
            found.setdefault(trial, []).append(str(entry.get("job")))
    return found


def _sweeps(output: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(output.glob("sweeps/*/sweep.json")))


def _runs(output: Path) -> Iterator[Path]:
    found = sorted(path for path in output.glob("*/*/*") if _RUN.fullmatch(path.name))
    return (path for path in found if path.is_dir() and is_run(path))


def _moved(run_dir: Path, sweep: Path) -> Path:
    """Path of a run, also when all of OUTPUT_DIR was moved, or has another name on this host."""
    here = sweep.absolute().parent.parent.joinpath(*run_dir.parts[-3:])
    return here if here.is_dir() else run_dir


def cells(status: RunStatus) -> tuple[str, ...]:
    """The texts of a row, one for each word of HEADER."""
    return (
        status.state,
        status.name,
        _steps(status),
        "" if status.loss is None else f"{status.loss:.4f}",
        "" if status.images_per_s is None else f"{status.images_per_s:,.0f}",
        "" if status.eta_s is None else duration(status.eta_s),
        status.node,
        status.job or "",
        _hours_text(status.gpu_hours, status.core_hours),
        _short(status.note),
    )


def summary(sections: Iterable[StatusSection]) -> str:
    """The line of totals."""
    found: Totals = totals(sections)
    counts = [f"{count} {state}" for state, count in found.counts.items() if count]
    number = sum(found.counts.values())
    words = [f"{number} training{'s' * (number != 1)}: {', '.join(counts) or 'none'}"]
    if hours := _hours_text(found.gpu_hours, found.core_hours, digits=2):
        words.append(f"{hours} used")
    if found.eta_s is not None:
        words.append(f"all end in about {duration(found.eta_s)}")
    return "; ".join(words)


def as_lines(sections: Sequence[StatusSection]) -> str:
    """Lines as wide as they need to be, fit for grep."""
    shown = _columns(sections)
    lines: list[str] = []
    for section in sections:
        rows = [HEADER, *map(cells, section.rows)]
        widths = {i: max(len(row[i]) for row in rows) for i in shown}
        lines += [_title(section)] if section.title else []
        for row in rows:
            padded = [
                row[i].rjust(widths[i]) if HEADER[i] in _NUMBERS else row[i].ljust(widths[i])
                for i in shown
            ]
            lines.append("  ".join(padded).rstrip())
        lines.append("")
    return "\n".join([*lines, summary(sections)])


def rendered(sections: Sequence[StatusSection], height: int | None = None) -> RenderableType:
    """The same for a terminal, wrapped to its width.

    height: of the screen, which cuts what is below it: then the totals and what needs a look come
    first.
    """
    is_cut = height is not None and 3 * len(sections) + sum(len(s.rows) for s in sections) > height
    shown = _columns(sections)
    parts: list[RenderableType] = []
    for section in sections:
        title = Text(_title(section)) if section.title else None
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for word in (HEADER[i] for i in shown):
            justify: JustifyMethod = "right" if word in _NUMBERS else "left"
            table.add_column(word, justify=justify, overflow="fold")
        rows = section.rows
        if is_cut:
            rows = sorted(rows, key=lambda row: _INTEREST.index(row.state))
        for row in rows:
            colour, texts = _COLOURS.get(row.state, ""), cells(row)
            table.add_row(*(Text(texts[i], colour if i == 0 else "") for i in shown))
        parts += [table, Text()]
    line = Text(summary(sections))
    return Group(line, Text(), *parts) if is_cut else Group(*parts, line)


def show_status(sections: Sequence[StatusSection], console: Console) -> None:
    """Prints the table."""
    if console.is_terminal:
        console.print(rendered(sections))
    else:
        console.file.write(as_lines(sections) + "\n")
        console.file.flush()


def watch_status(status: Status, console: Console, every_s: float) -> None:
    """Shows it again and again until all has ended or Ctrl-C."""
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with suppress(KeyboardInterrupt), live or nullcontext():
        while True:
            sections = status.read()
            if live:
                live.update(rendered(sections, height=console.height), refresh=True)
            else:
                show_status(sections, console)
            if totals(sections).has_ended:
                return
            time.sleep(every_s)


def _columns(sections: Iterable[StatusSection]) -> list[int]:
    """The columns that say something of one training at least."""
    rows = [cells(row) for section in sections for row in section.rows]
    return [i for i in range(len(HEADER)) if any(row[i] for row in rows)]


def _title(section: StatusSection) -> str:
    return f"{section.title}, its driver runs" if section.is_driven else section.title


def _steps(status: RunStatus) -> str:
    if status.total is None:
        return str(status.step) if status.step else ""
    return f"{status.step}/{status.total}"


def _short(note: str) -> str:
    """The note without its middle, where it is long: train.log has all of it."""
    if len(note) <= _LONGEST_NOTE:
        return note
    return f"{note[: _LONGEST_NOTE - 60]} ... {note[-55:]}"


def _hours_text(gpu: float, core: float, digits: int = 3) -> str:
    """`0.250 GPU-h` or `0.250 core-h`, or both."""
    kinds = (("GPU-h", gpu), ("core-h", core))
    return ", ".join(f"{hours:.{digits}f} {kind}" for kind, hours in kinds if hours > 0)
