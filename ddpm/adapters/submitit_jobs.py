"""Files of work as jobs of submitit: an array job on SLURM, processes here ("local"), or one after
the other in this process ("debug").

What travels is the path of a file, never code or data: submitit pickles a FileTask.
"""

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import submitit

from ddpm import durable, slurm_queue
from ddpm.adapters.file_task import FileTask
from ddpm.adapters.group_task import GroupTask
from ddpm.batch_script import GPU_OPTIONS, VARIABLES, options_in
from ddpm.errors import InputError
from ddpm.groups import split
from ddpm.job_list import Cluster, Submitted

SIGNAL_S = 120  # SLURM asks a task to save so long before its time is up
_OURS = ("array", "error", "open-mode", "output", "signal", "wrap", "nodes", "ntasks-per-node")


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


class Part(Protocol):
    """What one task does."""

    @property
    def path(self) -> Path:
        """The file that says it."""

    @property
    def holds(self) -> tuple[str, ...]:
        """What it does, for the list of jobs."""


def check_options(
    options: Sequence[str], *, instead: Mapping[str, str] | None = None
) -> dict[str, str | bool]:
    """`KEY=VALUE` or `KEY` as sbatch's long options; InputError with all that cannot be given.

    instead: what to use for options that have a word of their own; None: as a sweep has them.
    """
    instead = _INSTEAD if instead is None else instead
    found: dict[str, str | bool] = {}
    problems = []
    for text in options:
        name, equals, value = text.lstrip("-").partition("=")
        key = name.replace("_", "-")
        if not re.fullmatch("[a-z][a-z-]*", key):
            problems.append(f"--sbatch {text!r}: give KEY=VALUE, such as mem=4G or account=physics")
        elif key in _OURS:
            problems.append(f"--sbatch {text!r}: this command sets --{key} itself; leave it out")
        elif key in instead:
            problems.append(f"--sbatch {text!r}: {instead[key]}")
        elif re.search(r"[\n\r\0]", value):
            problems.append(f"--sbatch {text!r}: a value is one line; leave the line break out")
        else:
            found[key.replace("-", "_")] = value if equals else True
    if problems:
        raise InputError(problems)
    return found


# of a sweep
_INSTEAD = {
    "time": "use --time",
    "partition": "use --partition",
    "job-name": "jobs are called after the sweep file; rename that",
    "cpus-per-task": "use CLUSTER.CPUS_PER_WORKER",
}


def check_folder(folder: Path, key: str = "TRAINING.OUTPUT_DIR") -> None:
    """InputError for a folder whose name SLURM would read as a pattern.  key: what chooses it."""
    if re.search(r"[%\\]", str(folder)):
        raise InputError(
            f"{str(folder)!r}: SLURM cannot write logs into a folder with '%' or a backslash in "
            f"its name; choose another {key}"
        )


def script(request: Request, folder: Path, tasks: int) -> str:
    """The batch script that submitit would give to sbatch for an array of `tasks` tasks."""
    executor: Any = _executor(request, folder)._executor
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(
    request: Request, folder: Path, parts: Sequence[Part], task: type[FileTask] = GroupTask
) -> Iterator[list[Submitted]]:
    """Submit a task for each part; each yield is an array job, submitted just now.

    folder: of submitit, only for its owner. On SLURM an array has as many tasks as the site allows.
    """
    durable.make_folder(folder)
    folder.chmod(0o700)
    chunk = slurm_queue.largest_array() if request.cluster == "slurm" else 1
    for number, some in enumerate(split(parts, chunk)):
        executor = _executor(request, folder)
        if request.cluster == "local" and request.gpus:  # else all of them would use the first
            first = number * request.gpus
            visible = list(range(first, first + request.gpus))
            executor._executor.parameters["visible_gpus"] = visible
        tasks = [task(str(part.path), requeues=request.requeues) for part in some]
        apart = _detached() if request.cluster == "local" else nullcontext()
        with apart, undisturbed(request, script(request, folder, len(some))):
            jobs = _submit_array(executor, tasks)
        yield [
            Submitted(
                job=job.job_id,
                name=request.name,
                cluster=request.cluster,
                trials=part.holds,
                group=str(part.path),
            )
            for job, part in zip(jobs, some, strict=True)
        ]


def run_here(folder: Path, parts: Sequence[Part], task: type[FileTask] = GroupTask) -> None:
    """Do the parts one after the other, as submitit's "debug" does."""
    durable.make_folder(folder)
    executor = submitit.AutoExecutor(folder, cluster="debug")
    for job in executor.submit_array([task(str(part.path), requeues=0) for part in parts]):
        job.wait()


def _submit_array(
    executor: submitit.AutoExecutor, tasks: Sequence[FileTask]
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
