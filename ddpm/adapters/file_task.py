"""What submitit runs in a task: a process `python -m MODULE FILE`, and the signals to it.

Only the class and the path of the file are pickled. The process reads plain data.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import ClassVar

import submitit
from submitit.helpers import DelayedSubmission

from ddpm.errors import Interrupted

SAVE_S = 100.0  # the process may take so long of the time before the limit
POLL_S = 0.2


class FileTask:
    """What submitit calls in a task: does in a child process what a file says.

    module: what the child runs.  requeues: how often the job may be put into the queue again.
    """

    module: ClassVar[str]
    _child: subprocess.Popen[bytes] | None = None
    _is_ending = False

    def __init__(self, file: str, *, requeues: int) -> None:
        self.file, self.requeues = file, requeues

    def __getstate__(self) -> dict[str, object]:
        return {"file": self.file, "requeues": self.requeues}  # a process cannot travel

    def goes_on(self, reason: str) -> bool:
        """Whether another child shall do the rest, now that one has died of `reason`."""
        return False

    def __call__(self) -> int:
        """Do what is left; the exit code, with which a task of its own process ends too."""
        in_own_process = submitit.JobEnvironment().cluster != "debug"
        if in_own_process:  # submitit has installed a handler that does nothing
            signal.signal(signal.SIGTERM, self._end)
        while True:
            with temporary_folder() as folder:
                code = self._run(folder)
            if code >= 0 or self._is_ending:
                break
            name = signal.Signals(-code).name
            hint = "; out of memory?" if -code == signal.SIGKILL else ""
            if not self.goes_on(f"its process was ended by {name}{hint}"):
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
        """One child from its start to its end; its exit code, negative where a signal ended it.

        temporary: the folder for what it leaves behind.
        """
        signals = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
        # blocked from the child's birth until it waits for them: none can end it in between
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", self.module, self.file],
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
        """Whether the child lives. Leaves its exit code to be read: this may run in a handler."""
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
