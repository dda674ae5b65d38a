"""What SLURM knows of jobs that others submitted, for those who only look: asked seldom, answered
soon or not at all.
"""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddpm import slurm_queue

_PATIENCE_S = 5.0
ASK_EVERY_S = 15.0
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"))
_BARE_ENDS = frozenset(("COMPLETED", "FAILED"))  # which say no more than their exit code


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job that waits or runs. reason: why it waits, in SLURM's word."""

    state: str
    reason: str

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING


class JobStates:
    """Jobs by their id, `123` or `123_4`. Where SLURM's commands are missing it knows nothing."""

    def __init__(self) -> None:
        self.is_known = False  # whether squeue answers
        self._living: dict[str, QueuedJob] = {}
        self._ends: dict[str, str] = {}
        self._asked_at: float | None = None
        self._missing: set[str] = set()

    def refresh(self) -> None:
        """Asks squeue again if that was long enough ago."""
        now = time.monotonic()
        if self._asked_at is not None and now < self._asked_at + ASK_EVERY_S:
            return
        self._asked_at = now
        answer = _ask(
            *("squeue", "--noheader", "--array", f"--user={os.getuid()}"),
            "--format=%i|%A|%T|%r",
        )
        self.is_known = answer is not None
        self._living, self._missing = {}, set()
        for line in answer or []:
            job, number, state, reason = line.split("|", 3)
            # a task that waits has its array's number, which is no name of its own
            for name in {job, number if state not in WAITING else job}:
                self._living[name] = QueuedJob(state=state, reason=reason)

    def living(self, job: str | None) -> QueuedJob | None:
        """The job while it waits or runs."""
        return self._living.get(job or "")

    def learn_ends(self, jobs: Iterable[str | None]) -> bool:
        """Asks sacct, once, how these jobs ended; whether it was asked."""
        known = self._living.keys() | self._ends.keys() | self._missing
        wanted = sorted({job for job in jobs if job} - known)
        if not wanted or not self.is_known:
            return False
        answer = _ask(
            *("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(wanted)}"),
            "--format=JobID,JobIDRaw,State,ExitCode",
        )
        for line in answer or []:
            job, number, state, exit_code = line.split("|")[:4]
            plain = state in _BARE_ENDS and exit_code.endswith(":0")
            text = state if not plain else f"{state}, exit code {exit_code.partition(':')[0]}"
            self._ends |= {job: text, number: text}
        self._missing |= set(wanted) - self._ends.keys()
        return True

    def end(self, job: str | None) -> str:
        """How a job ended, in SLURM's words (`NODE_FAIL`); empty when that is not known."""
        return self._ends.get(job or "", "")


def _ask(*command: str) -> Sequence[str] | None:
    """The lines of an answer; None when the command is missing, fails or takes too long."""
    answer = slurm_queue.ask(*command, timeout_s=_PATIENCE_S)
    return None if answer is None else answer.splitlines()
