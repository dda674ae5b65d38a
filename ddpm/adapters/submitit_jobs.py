"""Groups of trials as jobs of submitit: an array job on SLURM, processes here ("local"), or one
after the other in this process ("debug").

What travels is the path of a group's file, never code or data: submitit pickles a GroupTask, which
starts `python -m ddpm.adapters.sweep_group GROUP.json` and waits for it.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from ddpm import durable, slurm_queue
from ddpm.batch_script import GPU_OPTIONS, VARIABLES, options_in
from ddpm.errors import InputError, Interrupted
from ddpm.groups import Group, split
from ddpm.job_list import Cluster, Submitted

SIGNAL_S = 120  # SLURM asks a task to save so long before its time is up
SAVE_S = 100.0  # of which the training may take so long
POLL_S = 0.2
_RUNNER = "ddpm.adapters.sweep_group"
_OURS = ("array", "error", "open-mode", "output", "signal", "wrap", "nodes", "ntasks-per-node")


class GroupTask:
    """What submitit calls in a task: trains the group in a child process.

    A child that dies (out of memory, a crash) fails the trial it was at; another goes on with the
    rest.  requeues: how often the job may be put into the queue again.
    """

    def __init__(self, group: str, *, requeues: int) -> None:
        self.group, self.requeues = group, requeues
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ending = False

    def __getstate__(self) -> dict[str, object]:
        return {"group": self.group, "requeues": self.requeues}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["group"], requeues=state["requeues"])  # type: ignore[misc]

    def __call__(self) -> int:
        """Train what is left; the exit code, with which a task of its own process ends too."""
        in_own_process = submitit.JobEnvironment().cluster != "debug"
        if in_own_process:  # submitit has installed a handler that does nothing
            signal.signal(signal.SIGTERM, self._end)
        group = Group.read(Path(self.group))
        while True:
            code = self._train()
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

    def _train(self) -> int:
        """One child from its start to its end; its exit code, negative where a signal ended it."""
        signals = {signal.SIGTERM, signal.SIGUSR2, signal.SIGINT}
        # blocked from the child's birth until it waits for them: none can end it in between
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", _RUNNER, self.group], stdin=subprocess.PIPE
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


@dataclass(frozen=True, kw_only=True)
class Request:
    """What every task gets.

    name: of the jobs.  gpus: whole ones.  jobs: tasks that run at once.  requeues: how often a task
    that has run out of time goes on in a new one.  options: of sbatch, as `--sbatch` gives them.
    """

    cluster: Cluster
    name: str
    cpus: int
    gpus: int
    jobs: int
    minutes: int
    requeues: int
    options: Mapping[str, str | bool] = field(default_factory=dict)


def check_options(options: Sequence[str]) -> dict[str, str | bool]:
    """`KEY=VALUE` or `KEY` as sbatch's long options; InputError with all that cannot be given."""
    found: dict[str, str | bool] = {}
    problems = []
    for text in options:
        name, equals, value = text.lstrip("-").partition("=")
        key = name.replace("_", "-")
        if not re.fullmatch("[a-z][a-z-]*", key):
            problems.append(f"--sbatch {text!r}: give KEY=VALUE, such as mem=4G or account=physics")
        elif key in _OURS:
            problems.append(f"--sbatch {text!r}: the sweep sets --{key} itself; leave it out")
        elif key in ("time", "partition", "job-name", "cpus-per-task"):
            problems.append(f"--sbatch {text!r}: {_INSTEAD[key]}")
        elif re.search(r"[\n\r\0]", value):
            problems.append(f"--sbatch {text!r}: a value is one line; leave the line break out")
        else:
            found[key.replace("-", "_")] = value if equals else True
    if problems:
        raise InputError(problems)
    return found


_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the sweep file; rename that",
    "cpus-per-task": "use CLUSTER.CPUS_PER_WORKER",
}


def check_folder(folder: Path) -> None:
    """InputError for a folder whose name SLURM would read as a pattern."""
    if re.search(r"[%\\]", str(folder)):
        raise InputError(
            f"{str(folder)!r}: SLURM cannot write logs into a folder with '%' or a backslash in "
            "its name; choose another TRAINING.OUTPUT_DIR"
        )


def script(request: Request, folder: Path, tasks: int) -> str:
    """The batch script that submitit would give to sbatch for an array of `tasks` tasks."""
    executor: Any = _executor(request, folder)._executor
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(request: Request, folder: Path, groups: Sequence[Group]) -> Iterator[list[Submitted]]:
    """Submit a task for each group; each yield is an array job, submitted just now.

    folder: of submitit, only for its owner. On SLURM an array has as many tasks as the site allows.
    """
    durable.make_folder(folder)
    folder.chmod(0o700)
    chunk = slurm_queue.largest_array() if request.cluster == "slurm" else 1
    for number, part in enumerate(split(groups, chunk)):
        executor = _executor(request, folder)
        if request.cluster == "local" and request.gpus:  # else all of them would use the first
            first = number * request.gpus
            visible = list(range(first, first + request.gpus))
            executor._executor.parameters["visible_gpus"] = visible
        tasks = [GroupTask(str(group.path), requeues=request.requeues) for group in part]
        apart = _detached() if request.cluster == "local" else nullcontext()
        with apart, undisturbed(request, script(request, folder, len(part))):
            jobs = _submit_array(executor, tasks)
        yield [
            Submitted(
                job=job.job_id,
                name=request.name,
                cluster=request.cluster,
                trials=tuple(outcome.trial for outcome in group.outcomes),
                group=str(group.path),
            )
            for job, group in zip(jobs, part, strict=True)
        ]


def run_here(folder: Path, groups: Sequence[Group]) -> None:
    """Train the groups one after the other, as submitit's "debug" does."""
    durable.make_folder(folder)
    executor = submitit.AutoExecutor(folder, cluster="debug")
    for job in executor.submit_array([GroupTask(str(g.path), requeues=0) for g in groups]):
        job.wait()


def _submit_array(
    executor: submitit.AutoExecutor, tasks: list[GroupTask]
) -> list[submitit.Job[int]]:
    try:
        return executor.submit_array(tasks)
    except submitit.core.utils.FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
        raise InputError(lines or str(error)) from error


def _executor(request: Request, folder: Path) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(
        folder, cluster=request.cluster, slurm_max_num_timeout=request.requeues
    )
    options: dict[str, str | bool] = {"requeue": True, **request.options}
    if re.search(r"[\n\r]", str(folder)):  # no #SBATCH line can say it; srun's --output can
        options["output"] = os.devnull
    executor.update_parameters(
        name=request.name,
        timeout_min=request.minutes,
        cpus_per_task=request.cpus,
        gpus_per_node=request.gpus or None,
        stderr_to_stdout=True,
        slurm_array_parallelism=request.jobs,
        slurm_signal_delay_s=SIGNAL_S,
        # since 22.05 srun does not take them from the job
        slurm_srun_args=["--cpus-per-task", str(request.cpus)],
        slurm_additional_parameters=options,
    )
    if request.cluster == "local":
        executor._executor.parameters["signal_delay_s"] = SIGNAL_S
    return executor


@contextmanager
def undisturbed(request: Request, text: str) -> Iterator[None]:
    """Without the SBATCH_* variables that would outrank the script's lines."""
    options = {"array", "wait", "no-requeue"} | options_in(text)
    if request.gpus:
        options |= set(GPU_OPTIONS)
    taken = {
        name: os.environ.pop(name)
        for option in options
        if (name := VARIABLES.get(option, "")) in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(taken)


@contextmanager
def _detached() -> Iterator[None]:
    """What is started in the block outlives this process and its terminal: neither Ctrl-C nor a
    hang-up reaches it, and it does not hold our output open.
    """
    kept = [os.dup(number) for number in (0, 1, 2)]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    nothing = os.open(os.devnull, os.O_RDWR)
    sys.stdout.flush()
    try:
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        yield
    finally:
        for number, old in enumerate(kept):
            os.dup2(old, number)
        for number in (nothing, *kept):
            os.close(number)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
