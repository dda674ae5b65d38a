"""What runs, what waits, what failed and why: a run, a sweep or a whole OUTPUT_DIR, from its files.

Anybody who sees the files may look, on any machine and at any time. Nothing is written, and nothing
missing is guessed.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddpm import lock, run_status
from ddpm.errors import InputError
from ddpm.job_states import JobStates
from ddpm.ledger import Ledger, Outcome
from ddpm.run_status import RunStatus

STATES = ("running", "queued", "done", "failed", "stopped", "planned")
_RUN = re.compile(r".+_[0-9a-f]{8}")
_TIME = re.compile(r"_\d{8}-\d{6}(-\d+)?_(?=[0-9a-f]{8}$)")  # in a run's name: for people to skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """A training and how it is; state: one of STATES."""

    name: str
    status: RunStatus


@dataclass(frozen=True, kw_only=True)
class Section:
    """The trials of a sweep, or the runs of no sweep; is_driven: its driver runs."""

    title: str
    rows: Sequence[Row] = field(default_factory=tuple)
    is_driven: bool = False


class Status:
    """A folder as it is now; `read` may be called again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, JobStates()
        kinds = {
            "run": run_status.is_run(folder),
            "sweep": (folder / "sweep.json").is_file(),
            "output": next(_sweeps(folder), None) or next(_runs(folder), None),
        }
        found = next((kind for kind, fits in kinds.items() if fits), None)
        if found is None:
            raise InputError(
                f"{folder} is no run directory (training_config.yaml), no sweep (sweep.json) and "
                "no OUTPUT_DIR with either (DATA/NETWORK/NAME_ID, sweeps/NAME); give one of them"
            )
        self._kind = found

    def read(self) -> list[Section]:
        """Every training below the folder."""
        self.jobs.refresh()
        if self._kind == "run":
            return [Section(title="", rows=[self._run(self.folder)])]
        if self._kind == "sweep":
            return [self._sweep(self.folder)]
        sections = [self._sweep(folder) for folder in _sweeps(self.folder)]
        trials = {Path(trial["run_dir"]).name for s in _sweeps(self.folder) for trial in _plan(s)}
        rows = [self._run(path) for path in _runs(self.folder) if path.name not in trials]
        return [*sections, *([Section(title="runs", rows=rows)] if rows else [])]

    def _run(self, path: Path) -> Row:
        path = path.absolute()
        return Row(name=_TIME.sub(" ", path.name), status=self._status(path))

    def _status(self, path: Path) -> RunStatus:
        """The run in a directory, and whether its job waits to go on with it."""
        found = run_status.read(path, self.jobs)
        if found.state in ("stopped", "failed"):
            queued = self.jobs.living(found.job)
            if queued and queued.is_waiting:
                note = f"job {found.job} waits ({queued.reason})"
                return replace(found, state="queued", note=note)
            if self.jobs.learn_ends([found.job]):
                return run_status.read(path, self.jobs)
        return found

    def _sweep(self, folder: Path) -> Section:
        outcomes, jobs = Ledger(folder / "ledger").outcomes(), _jobs_of(folder)
        rows = []
        for planned in _plan(folder):
            trial = planned["trial"]
            blank = Outcome(**{key: planned[key] for key in ("trial", "cell", "seed", "run_dir")})
            status = self._trial(planned, outcomes.get(trial), jobs.get(trial, []), folder)
            rows.append(Row(name=blank.name, status=status))
        driven = bool(lock.is_held(folder / "sweep.lock"))
        return Section(title=f"sweep {folder.name}", rows=rows, is_driven=driven)

    def _trial(
        self, planned: dict[str, Any], outcome: Outcome | None, jobs: list[str], folder: Path
    ) -> RunStatus:
        path = _moved(Path(planned["run_dir"]), folder)
        found = RunStatus(state="planned", total=planned.get("steps"))
        if run_status.is_run(path):
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


def totals(sections: Iterable[Section]) -> Totals:
    """What the sections come to."""
    sections = list(sections)
    rows = [row.status for section in sections for row in section.rows]
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    return Totals(
        counts=counts,
        gpu_hours=sum(row.gpu_hours for row in rows),
        core_hours=sum(row.core_hours for row in rows),
        eta_s=_eta(rows, any(section.is_driven for section in sections)),
        has_ended=not (
            counts["running"] or counts["queued"] or any(section.is_driven for section in sections)
        ),
    )


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
    planned: list[dict[str, Any]] = run_status.read_json(folder / "sweep.json").get("planned", [])
    return planned


def _jobs_of(folder: Path) -> dict[str, list[str]]:
    """Trial -> the jobs that hold it, oldest first, as jobs.json has them."""
    found: dict[str, list[str]] = {}
    for entry in run_status.read_list(folder / "jobs.json"):
        for trial in entry.get("trials", []):
            found.setdefault(trial, []).append(str(entry.get("job")))
    return found


def _sweeps(output: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(output.glob("sweeps/*/sweep.json")))


def _runs(output: Path) -> Iterator[Path]:
    found = sorted(path for path in output.glob("*/*/*") if _RUN.fullmatch(path.name))
    return (path for path in found if path.is_dir() and run_status.is_run(path))


def _moved(run_dir: Path, sweep: Path) -> Path:
    """Where a run lies when the whole OUTPUT_DIR was moved, or is called otherwise on this host."""
    here = sweep.absolute().parent.parent.joinpath(*run_dir.parts[-3:])
    return here if here.is_dir() else run_dir
