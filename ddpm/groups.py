"""A group of trials as plain data: what one array task trains, and how far it has come.

    jobs/GROUP.json       everything the task needs, written once before it is submitted
    jobs/GROUP.journal    a line when a trial begins, when it ends, and when the task ends

A task that is requeued, or that a crash of one trial has ended, goes on after the journal's last
line; a killed task leaves the name of the trial that it was at.
"""

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm import durable
from ddpm.ledger import Ledger, Outcome


@dataclass(frozen=True, kw_only=True)
class Group:
    """Trials that one process trains one after the other.

    path: its file.  folder: of the sweep.  outcomes: the blank ones.  jobs: the training of each,
    a Job of ddpm/worker.py as a dictionary.  resources: what a trial takes.  clean_stage: at the
    end remove this node's copies of the shards.
    """

    path: Path
    sweep: str
    folder: Path
    outcomes: tuple[Outcome, ...]
    jobs: tuple[Mapping[str, Any], ...]
    resources: Mapping[str, Any]
    clean_stage: bool = False

    def write(self) -> None:
        """Keeps it at its path, for its owner's eyes."""
        durable.make_folder(self.path.parent)
        durable.write_json(
            self.path,
            {
                "sweep": self.sweep,
                "folder": str(self.folder),
                "resources": dict(self.resources),
                "clean_stage": self.clean_stage,
                "trials": [
                    {"outcome": asdict(outcome), "job": dict(job)}
                    for outcome, job in zip(self.outcomes, self.jobs, strict=True)
                ],
            },
        )

    @classmethod
    def read(cls, path: Path) -> "Group":
        """The group that was written at `path`."""
        facts = durable.read_json(path)
        trials: list[dict[str, Any]] = facts["trials"]
        return cls(
            path=path,
            sweep=facts["sweep"],
            folder=Path(facts["folder"]),
            outcomes=tuple(Outcome(**trial["outcome"]) for trial in trials),
            jobs=tuple(trial["job"] for trial in trials),
            resources=facts["resources"],
            clean_stage=facts["clean_stage"],
        )

    @property
    def journal(self) -> "Journal":
        return Journal(self.path)

    @property
    def holds(self) -> tuple[str, ...]:
        """The ids of its trials, for the list of jobs."""
        return tuple(outcome.trial for outcome in self.outcomes)

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "ledger")

    @property
    def stop_file(self) -> Path:
        """Appears when all trials of the sweep shall save and stop."""
        return self.folder / "stop"

    def left(self) -> list[tuple[Outcome, Mapping[str, Any]]]:
        """The trials that neither the journal nor the ledger knows as ended, each with its job."""
        ended, outcomes = self.journal.ended, self.ledger.outcomes()
        return [
            (outcome, job)
            for outcome, job in zip(self.outcomes, self.jobs, strict=True)
            if outcome.trial not in ended
            and not (outcome.trial in outcomes and outcomes[outcome.trial].status == "done")
        ]

    def record_death(self, reason: str) -> Outcome | None:
        """Records that the trial the journal left open has failed; it, or None without one."""
        trial = self.journal.open_trial
        found = next((outcome for outcome in self.outcomes if outcome.trial == trial), None)
        if found is None:
            return None
        failed = found.failed(reason)
        self.ledger.record(failed)
        self.journal.end(failed.trial, failed.status)
        return failed


class Journal:
    """How far the task of the group at `path` has come."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_suffix(".journal")

    def begin(self, trial: str) -> None:
        """A trial is about to be trained."""
        self._append(
            {
                "begin": trial,
                "job": _job(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            }
        )

    def end(self, trial: str, status: str) -> None:
        """A trial has ended: done, failed, stopped or held."""
        self._append({"end": trial, "status": status})

    def exit(self, code: int) -> None:
        """The task has ended by itself."""
        self._append({"exit": code})

    @property
    def ended(self) -> set[str]:
        """The trials that this group will not try again."""
        return {
            line["end"]
            for line in self._lines()
            if "end" in line and line["status"] in ("done", "failed")
        }

    @property
    def open_trial(self) -> str | None:
        """The trial that began last, while nothing says that it ended."""
        last = next(iter(self._lines()[-1:]), {})
        return last.get("begin")

    @property
    def last_begun(self) -> str | None:
        """The trial that began last, whether it has ended or not."""
        return next((line["begin"] for line in reversed(self._lines()) if "begin" in line), None)

    @property
    def exit_code(self) -> int | None:
        """How the task ended, None while it runs or when it was killed."""
        last = next(iter(self._lines()[-1:]), {})
        return last.get("exit")

    @property
    def is_empty(self) -> bool:
        """Whether the task never came as far as its first line."""
        return not self._lines()

    def _append(self, line: Mapping[str, object]) -> None:
        durable.append_line(self.path, json.dumps(line))

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; a kill may have torn the last one."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def _job() -> str | None:
    """The SLURM job this process runs in, as jobs.json names it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array is None:
        return os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"


def split(trials: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    """The trials in their order, `size` at a time."""
    return [trials[start : start + size] for start in range(0, len(trials), size)]
