"""What submitit runs in a task: a process that trains a group of trials, and the signals to it.

Only this class and the path of the group's file are pickled. The process is `python -m
ddpm.adapters.sweep_group GROUP.json`, which reads plain data.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from ddpm.errors import Interrupted
from ddpm.groups import Group

SAVE_S = 100.0  # the training may take so long of the time before the limit
POLL_S = 0.2
_RUNNER = "ddpm.adapters.sweep_group"


class GroupTask:
    """What submitit calls in a task: trains the group in a child process.

    A child that dies (out of memory, a crash) fails the trial it was at; another goes on with the
    rest.  requeues: how often the job may be put into the queue again.
    """

    _child: subprocess.Popen[bytes] | None = None
    _is_ending = False

    def __init__(self, group: str, *, requeues: int) -> None:
        self.group, self.requeues = group, requeues

    def __getstate__(self) -> dict[str, object]:
        return {"group": self.group, "requeues": self.requeues}  # a process cannot travel

    def __call__(self) -> int:
        """Train what is left; the exit code, with which a task of its own process ends too."""
        in_own_process = submitit.JobEnvironment().cluster != "debug"
        if in_own_process:  # submitit has installed a handler that does nothing
            signal.signal(signal.SIGTERM, self._end)
        group = Group.read(Path(self.group))
        while True:
            with tempfile.TemporaryDirectory(prefix="ddpm-", ignore_cleanup_errors=True) as folder:
                code = self._train(folder)
            if code >= 0 or self._is_ending:
                break
            name = signal.Signals(-code).name
            hint = "; out of memory?" if -code == signal.SIGKILL else ""
            if group.record_death(f"its process was ended by {name}{hint}") is None:
                break
        code = Interrupted.exit_code if self._is_ending else code if code >= 0 else 128 - code
        if in_own_process and code:
            raise SystemExit(code)  # else SLURM would call the job completed
        return code

    def checkpoint(self) -> DelayedSubmission:
        """submitit's answer to USR2: the training saves, then this task is to be queued again.

        Ends the task instead when it was told to end for good or was queued again often enough.
        """
        self._forward(signal.SIGUSR2)
        deadline = time.monotonic() + SAVE_S
        while self._is_training() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        # a preempted job is sent TERM too, which would end the `scontrol requeue` that comes next
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        starts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if self._is_ending or starts >= self.requeues:
            raise SystemExit(Interrupted.exit_code)
        return DelayedSubmission(self)

    def _train(self, temporary: str) -> int:
        """One child from its start to its end; its exit code, negative where a signal ended it.

        temporary: the folder for what it leaves behind.
        """
        signals = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
        # blocked from the child's birth until it waits for them: none can end it in between
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", _RUNNER, self.group],
                stdin=subprocess.PIPE,
                env=os.environ | {"TMPDIR": temporary},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with self._child as child:
            while self._is_training():
                time.sleep(POLL_S)
            return child.wait()

    def _is_training(self) -> bool:
        """Whether the child lives. Leaves its exit code to be read: this may run in a handler."""
        if self._child is None:
            return False
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._child.pid, flags) is None
        except ChildProcessError:
            return False

    def _end(self, number: int, frame: object) -> None:
        """SIGTERM: this task ends for good, once the training has saved."""
        self._is_ending = True
        self._forward(signal.SIGTERM)

    def _forward(self, number: signal.Signals) -> None:
        if self._is_training() and self._child is not None:
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, number)
