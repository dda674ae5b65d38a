"""Work in files, each done by one task of a job: its items, its journal, its child process.

    jobs/NAME.json       the task, written before it is submitted
    jobs/NAME.journal    a line when the task begins an item (a trial, some images) and ends it
    stop                 appears when all tasks shall save and stop

submitit pickles a FileTask, which is the path of a file; the work itself is never unpickled.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from ddpm.errors import Interrupted
from ddpm.runs import storage

JOBS_STOP_FILE = "stop"
SAVE_S = 100.0  # the process may take so long of the time before the limit
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """The work of one task, in the file `path`.

    folder: of the sweep or of the images in bulk.  items: by name, as plain data.
    """

    path: Path
    folder: Path
    items: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "TaskFile":
        facts = storage.read_json(path)
        return cls(path=path, folder=Path(facts["folder"]), items=facts["items"])

    @property
    def journal(self) -> "Journal":
        return Journal(self.path)

    @property
    def stop_file(self) -> Path:
        return self.folder / JOBS_STOP_FILE


def write_tasks(folder: Path, parts: Iterable[Mapping[str, Any]]) -> list[TaskFile]:
    """A task for each part of the work, its file written for its owner's eyes."""
    jobs, prefix = folder / "jobs", secrets.token_hex(4)
    storage.make_folder(jobs)
    tasks = []
    for number, items in enumerate(parts):
        path = jobs / f"{prefix}-{number:04d}.json"
        tasks.append(TaskFile(path=path, folder=folder, items=items))
        storage.write_json(path, {"folder": str(folder), "items": items})
    return tasks


class Journal:
    """Progress of the task whose file is at `path`; each line durable before the next."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_suffix(".journal")

    def begin(self, item: str) -> None:
        """An item is about to be done, by this process."""
        array, task = (os.environ.get(f"SLURM_ARRAY_{word}_ID") for word in ("JOB", "TASK"))
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._append(begin=item, job=job, host=socket.gethostname(), pid=os.getpid(), time=now)

    def end(self, item: str, status: str) -> None:
        """An item has ended: done, failed, stopped or held."""
        self._append(end=item, status=status)

    def died(self, reason: str) -> None:
        """The process that began the last item is dead."""
        self._append(died=reason)

    def exit(self, code: int) -> None:
        """The task has ended by itself."""
        self._append(exit=code)

    @property
    def begun(self) -> list[str]:
        """The items that were begun, in that order, one that was begun again too."""
        return [line["begin"] for line in self._lines() if "begin" in line]

    @property
    def ended(self) -> set[str]:
        """The items that this task will not try again."""
        ends = (line for line in self._lines() if line.get("status") in ("done", "failed"))
        return {line["end"] for line in ends}

    @property
    def open_item(self) -> str | None:
        """The item that began last, while nothing says that it ended."""
        lines = [line for line in self._lines() if "died" not in line]
        return lines[-1].get("begin") if lines else None

    @property
    def death(self) -> str | None:
        """Reason of death of the process at the open item; None while nobody has seen it dead."""
        return self._last.get("died")

    @property
    def exit_code(self) -> int | None:
        """Exit code of the task; None while it runs or when it was killed."""
        return self._last.get("exit")

    def _append(self, **line: object) -> None:
        storage.append_line(self.path, json.dumps(line))

    @property
    def _last(self) -> dict[str, Any]:
        return next(reversed(self._lines()), {})

    def _lines(self) -> list[dict[str, Any]]:
        """The whole lines; a kill may have torn the last one."""
        found = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found


class FileTask:
    """A file's work in a child process `python -m ddpm.cluster COMMAND FILE`: submitit's callable.

    A child that dies (out of memory, a crash) is followed by another, while each comes to an item
    that none before it has begun.  requeues: how often the job may be put into the queue again.
    """

    _child: subprocess.Popen[bytes] | None = None
    _is_ending = False

    def __init__(self, command: str, file: str, requeues: int) -> None:
        self.command, self.file, self.requeues = command, file, requeues

    def __getstate__(self) -> dict[str, object]:
        return {"command": self.command, "file": self.file, "requeues": self.requeues}

    def __call__(self) -> int:
        """Do what is left; the exit code, with which a task of its own process ends too."""
        in_own_process = submitit.JobEnvironment().cluster != "debug"
        if in_own_process:  # submitit has installed a handler that does nothing
            signal.signal(signal.SIGTERM, self._end)
        journal, begun = Journal(Path(self.file)), 0
        while True:
            with temporary_folder() as folder:
                code = self._run(folder)
            if code >= 0 or self._is_ending:
                break
            hint = "; out of memory?" if -code == signal.SIGKILL else ""
            journal.died(f"its process was ended by {signal.Signals(-code).name}{hint}")
            print(f"{self.file}: {journal.death}", flush=True)
            before, begun = begun, len(set(journal.begun))
            if begun <= before:
                break
        code = Interrupted.exit_code if self._is_ending else code if code >= 0 else 128 - code
        if in_own_process and code:
            raise SystemExit(code)  # else SLURM would call the job completed
        return code

    def checkpoint(self) -> DelayedSubmission:
        """submitit's answer to USR2: the child saves, then this task is to be queued again.

        Ends the task instead when it was told to end for good or was queued again often enough.
        """
        self._forward(signal.SIGUSR2)
        deadline = time.monotonic() + SAVE_S
        while self._is_running() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        # a preempted job is sent TERM too, which would end the `scontrol requeue` that comes next
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        starts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if self._is_ending or starts >= self.requeues:
            raise SystemExit(Interrupted.exit_code)
        return DelayedSubmission(self)

    def _run(self, temporary: str) -> int:
        """One child from its start to its end; its exit code, negative where a signal ended it."""
        # blocked from the child's birth until it waits for them: none can end it in between
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "ddpm.cluster", self.command, self.file],
                stdin=subprocess.PIPE,
                env=os.environ | {"TMPDIR": temporary},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with self._child as child:
            while self._is_running():
                time.sleep(POLL_S)
            return child.wait()

    def _is_running(self) -> bool:
        """True while the child lives. Its exit code stays to be read: this may run in a handler."""
        if self._child is None:
            return False
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._child.pid, flags) is None
        except ChildProcessError:
            return False

    def _end(self, number: int, frame: object) -> None:
        """SIGTERM: this task ends for good, once the child has saved."""
        self._is_ending = True
        self._forward(signal.SIGTERM)

    def _forward(self, number: signal.Signals) -> None:
        if self._is_running() and self._child is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)


@contextmanager
def temporary_folder() -> Iterator[str]:
    """A private folder for what a child leaves behind. That of a SLURM job has its number, so that
    a start of the job that was killed has its folder removed by the next.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        with tempfile.TemporaryDirectory(prefix="ddpm-", ignore_cleanup_errors=True) as folder:
            yield folder
        return
    folder = os.path.join(tempfile.gettempdir(), f"ddpm-{os.getuid()}-{job}")
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop_asked() -> Callable[[], bool]:
    """The function that says whether a child is to save and stop: SIGTERM, SIGUSR2 or SIGINT came,
    or its FileTask is dead, which held the other end of the pipe that is standard input.

    The signals are blocked for good and taken by a thread. SLURM sends them to every process of a
    step, and children inherit the block: W&B's service or a compiler lives on until all is saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    asked = threading.Event()

    def wait_for_signals() -> None:
        while True:
            name = signal.Signals(signal.sigwait(SIGNALS)).name
            print(f"{name}: saving, then stopping", file=sys.stderr, flush=True)
            asked.set()

    def wait_for_task() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        asked.set()

    threading.Thread(target=wait_for_signals, daemon=True).start()
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=wait_for_task, daemon=True).start()
    return asked.is_set
