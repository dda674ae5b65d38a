"""Tasks as jobs of submitit: an array on SLURM, processes here ("local"), or one after the other in
this process ("debug"); submitted, watched, and how they ended.

    jobs.json      which job has which items
    code/          copies of this code, one a version: what the jobs import
    submitit/      of submitit: logs, and a pickled FileTask, the path of a file

submitit makes the batch script, submits arrays, requeues on USR2. What runs and how a job ended is
asked of squeue, sacct and the journal: submitit's Job.state is a minute old, without sacct it stays
UNKNOWN, and Job.result() unpickles what lies on disk.
"""

import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import submitit
from rich.console import Console

from ddpm.cluster import slurm
from ddpm.cluster.slurm import GPU_OPTIONS, VARIABLES, from_environment, minutes, options_in
from ddpm.cluster.task import JOBS_STOP_FILE, POLL_S, FileTask, Journal, TaskFile
from ddpm.errors import InputError, Interrupted
from ddpm.runs import provenance, storage

Cluster = Literal["slurm", "local", "debug"]
JOBS_FILE = "jobs.json"
JOBS = 16  # tasks that run at once on SLURM unless --jobs says otherwise
SIGNAL_S = 120  # SLURM asks a task to save so long before its time is up
LEAST_MINUTES = 15  # submitit takes the end of a shorter job for its time limit
DEFAULT_MINUTES = 60
REQUEUES = 100
RECORDS_S = 10.0  # sacct may lag behind
_FAILURES = ("FAILED", "OUT_OF_MEMORY")  # ends that the work is to blame for; others interrupt it
_QUEUE_POLL_S = {"slurm": 3.0, "local": 0.5}
_OURS = ("array", "error", "open-mode", "output", "signal", "wrap", "nodes", "ntasks-per-node")
_INSTEAD = {"time": "use --time", "partition": "use --partition"}


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """The command line on jobs; None takes the default.

    jobs: tasks that run at once.  time: limit of a task, as SLURM writes it.  sbatch: further
    options of sbatch, KEY=VALUE or KEY.  group_size: trials of a task.
    """

    cluster: Cluster
    jobs: int | None = None
    time: str | None = None
    partition: str | None = None
    sbatch: Sequence[str] = ()
    group_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """Request of every task.

    minutes: time limit.  requeues: how often a task that has run out of time goes on in a new one.
    options: of sbatch, as `--sbatch` gives them.  name: of the jobs.  gpus: whole ones.  jobs:
    tasks that run at once.
    """

    cluster: Cluster
    minutes: int
    requeues: int
    options: Mapping[str, str | bool] = field(default_factory=dict)
    name: str = "ddpm"
    cpus: int = 1
    gpus: int = 0
    jobs: int = JOBS


def read_options(
    options: JobOptions, folder: Path, problems: list[str], *, instead: Mapping[str, str], key: str
) -> JobResources:
    """The options, checked, name and sizes left to be filled in; what is wrong goes to `problems`.

    folder: of the results, which `key` chooses.  instead: of options of sbatch that have another
    way to be given, that way.
    """
    problems += [
        f"--{name.replace('_', '-')} is {value}; give at least 1"
        for name in ("group_size", "jobs")
        if (value := getattr(options, name)) is not None and value < 1
    ]
    if re.search(r"[%\\]", str(folder)):  # a pattern to SLURM
        problems.append(
            f"{str(folder)!r}: SLURM cannot write logs into a folder with '%' or a backslash in "
            f"its name; choose another {key}"
        )
    given: dict[str, str | bool] = {}
    for text in options.sbatch:
        name, equals, value = text.lstrip("-").partition("=")
        option = name.replace("_", "-")
        if not re.fullmatch("[a-z][a-z-]*", option):
            problems.append(f"--sbatch {text!r}: give KEY=VALUE, such as mem=4G or account=physics")
        elif option in _OURS:
            problems.append(f"--sbatch {text!r}: this command sets --{option} itself; leave it out")
        elif other := {**_INSTEAD, **instead}.get(option):
            problems.append(f"--sbatch {text!r}: {other}")
        elif re.search(r"[\n\r\0]", value):
            problems.append(f"--sbatch {text!r}: a value is one line; leave the line break out")
        else:
            given[option.replace("-", "_")] = value if equals else True
    if options.partition:
        given["partition"] = options.partition
    requeues = os.environ.get("DDPM_REQUEUES", str(REQUEUES))
    if not requeues.isdecimal():
        problems.append(f"DDPM_REQUEUES is {requeues!r}; give a whole number such as {REQUEUES}")
        requeues = "0"
    limit = DEFAULT_MINUTES
    try:
        limit = minutes(options.time or from_environment(os.environ).get("time") or str(limit))
    except InputError as error:
        problems += error.problems
    if limit < LEAST_MINUTES:
        problems.append(
            f"a time limit of {limit} minutes is too short to save and to queue again; give "
            f"--time {LEAST_MINUTES} or more"
        )
    return JobResources(
        cluster=options.cluster, minutes=limit, requeues=int(requeues), options=given
    )


def script(resources: JobResources, folder: Path, tasks: int) -> str:
    """The batch script that submitit would give to sbatch for an array of `tasks` tasks."""
    executor: Any = _executor(resources, folder)._executor
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job and its items.

    job: SLURM's id (`123_4`), or the process that a local job runs in.  name: SLURM's.  trials:
    their ids, or the images' numbers.  group: the task's file.
    """

    job: str
    name: str
    cluster: Cluster
    trials: tuple[str, ...]
    group: str

    @property
    def journal(self) -> Journal:
        return Journal(Path(self.group))

    @property
    def task(self) -> TaskFile:
        return TaskFile.read(Path(self.group))

    def log(self, folder: Path) -> Path:
        """Its output; folder: of the sweep or of the images."""
        return folder / "submitit" / f"{self.job}_0_log.out"


def submit(
    resources: JobResources,
    folder: Path,
    command: str,
    tasks: Sequence[TaskFile],
    living: Sequence[Submitted],
    console: Console,
) -> list[Submitted]:
    """Submit the tasks, in arrays as large as the site allows; each is in jobs.json at once.

    folder: of the sweep or of the images; submitit's in it is only for its owner.  living: earlier
    jobs that stay in jobs.json. Returns all of them.
    """
    own = folder / "submitit"
    storage.make_folder(own)
    own.chmod(0o700)
    known = list(living)
    size = slurm.largest_array() if resources.cluster == "slurm" else 1
    for number, start in enumerate(range(0, len(tasks), size)):
        some = tasks[start : start + size]
        executor = _executor(resources, own)
        if resources.cluster == "local" and resources.gpus:  # else all would use the first
            first = number * resources.gpus
            visible = list(range(first, first + resources.gpus))
            executor._executor.parameters["visible_gpus"] = visible
        calls = [FileTask(command, str(task.path), resources.requeues) for task in some]
        apart = _detached() if resources.cluster == "local" else nullcontext()
        quiet = undisturbed(resources, script(resources, own, len(some)))
        with apart, quiet, _frozen_code(folder):
            try:
                jobs = executor.submit_array(calls)
            except submitit.core.utils.FailedJobError as error:
                lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
                raise InputError(lines or str(error)) from error
        known += [
            Submitted(
                job=job.job_id,
                name=resources.name,
                cluster=resources.cluster,
                trials=tuple(task.items),
                group=str(task.path),
            )
            for job, task in zip(jobs, some, strict=True)
        ]
        storage.write_json(folder / JOBS_FILE, [asdict(job) for job in known])
        array = jobs[0].job_id.partition("_")[0]
        console.print(
            f"submitted job {array}: {len(some)} task(s); logs: {own / array}*_log.out",
            soft_wrap=True,
            markup=False,
        )
    return known


def run_here(folder: Path, command: str, tasks: Sequence[TaskFile]) -> None:
    """Do the tasks one after the other, as submitit's "debug" does."""
    storage.make_folder(folder / "submitit")
    executor = submitit.AutoExecutor(folder / "submitit", cluster="debug")
    for job in executor.submit_array([FileTask(command, str(task.path), 0) for task in tasks]):
        job.wait()


def _executor(resources: JobResources, folder: Path) -> submitit.AutoExecutor:
    executor = submitit.AutoExecutor(
        folder, cluster=resources.cluster, slurm_max_num_timeout=resources.requeues
    )
    options: dict[str, str | bool] = {"requeue": True, **resources.options}
    if re.search(r"[\n\r]", str(folder)):  # no #SBATCH line can say it; srun's --output can
        options["output"] = os.devnull
    executor.update_parameters(
        name=resources.name,
        timeout_min=resources.minutes,
        cpus_per_task=resources.cpus,
        gpus_per_node=resources.gpus or None,
        stderr_to_stdout=True,
        slurm_array_parallelism=resources.jobs,
        slurm_signal_delay_s=SIGNAL_S,
        # since 22.05 srun does not take them from the job
        slurm_srun_args=["--cpus-per-task", str(resources.cpus)],
        slurm_additional_parameters=options,
    )
    if resources.cluster == "local":
        executor._executor.parameters["signal_delay_s"] = SIGNAL_S
    return executor


@contextmanager
def undisturbed(resources: JobResources, text: str) -> Iterator[None]:
    """Without the SBATCH_* variables that would outrank the script's lines."""
    options = {"array", "wait", "no-requeue"} | options_in(text)
    if resources.gpus:
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
def _frozen_code(folder: Path) -> Iterator[None]:
    """A block whose jobs import a copy of this code as it is now, however late they start."""
    code, names = str(provenance.frozen(folder.absolute())), ("PYTHONPATH", "PYTHONSAFEPATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    os.environ["PYTHONPATH"] = os.pathsep.join([code, *filter(None, [kept.get("PYTHONPATH")])])
    os.environ["PYTHONSAFEPATH"] = "1"  # else `python -m` looks where the job was submitted first
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(kept)


@contextmanager
def _detached() -> Iterator[None]:
    """A block whose processes outlive this one and its terminal: neither Ctrl-C nor a hang-up
    reaches them, and they do not keep our output open.
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


def read_jobs(folder: Path) -> list[Submitted]:
    """The jobs of `folder`, those that have ended among them."""
    path = folder / JOBS_FILE
    entries = json.loads(path.read_text()) if path.exists() else []
    return [Submitted(**(entry | {"trials": tuple(entry["trials"])})) for entry in entries]


def living_jobs(jobs: Iterable[Submitted]) -> list[Submitted] | None:
    """Those that wait or run; None while that cannot be known."""
    jobs = list(jobs)
    queue = slurm.queue() if any(job.cluster == "slurm" for job in jobs) else {}
    if queue is None:
        return None
    return [
        job
        for job in jobs
        if (job.cluster == "local" and _is_local_job(job))
        or (job.cluster == "slurm" and job.job in queue and queue[job.job].name == job.name)
    ]


def _is_local_job(job: Submitted) -> bool:
    """True where the process is there and is that job: numbers of processes come again."""
    try:
        process = psutil.Process(int(job.job))
        is_ours = "submitit.local._local" in process.cmdline()
        return is_ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def living(folder: Path) -> list[Submitted]:
    """The jobs of an earlier command that still wait or run; InputError when SLURM cannot say."""
    found = living_jobs(read_jobs(folder))
    if found is None:
        raise InputError(
            f"{folder / JOBS_FILE} names jobs and squeue does not answer, so that nobody knows "
            "whether they run; try again when SLURM is back"
        )
    return found


def until_the_end(
    jobs: Sequence[Submitted], should_stop: Callable[[], bool], look: str, folder: Path
) -> Iterator[list[Submitted]]:
    """Yields the jobs that live, again and again until none does. Interrupted when a stop is asked
    for: they go on.  look, folder: of how_to().

    A job on its way back into the queue may be missing for a moment: it is gone when it is missing
    twice.
    """
    there, suspects = {job.job: job for job in jobs}, set[str]()
    while there:
        deadline = time.monotonic() + _QUEUE_POLL_S[jobs[0].cluster]
        while time.monotonic() < deadline and not should_stop():
            time.sleep(POLL_S)
        if should_stop():
            raise Interrupted(
                f"detached; {len(there)} job(s) go on, and the same command watches them again. "
                f"{how_to(list(there.values()), look, folder)}"
            )
        yield list(there.values())
        now = living_jobs(there.values())
        if now is None:
            continue
        gone = there.keys() - {job.job for job in now}
        for job in gone & suspects:
            del there[job]
        suspects = gone


def how_to(jobs: Sequence[Submitted], look: str, folder: Path) -> str:
    """Advice on jobs without this process.  look: the command that shows them."""
    ids = " ".join(dict.fromkeys(job.job.partition("_")[0] for job in jobs))
    stop = f"scancel {ids}"
    if jobs[0].cluster != "slurm":
        stop = shlex.join(["touch", str(folder / JOBS_STOP_FILE)])
    return f"look: {look}    stop: {stop}    detach: Ctrl-C"


def deaths(
    jobs: Sequence[Submitted], folder: Path, console: Console
) -> Iterator[tuple[Submitted, str]]:
    """Jobs that ended without a word, a line printed for each; those that the work is to blame for
    come with the reason.
    """
    killed = [job for job in jobs if job.journal.exit_code is None]
    records = _records(job.job for job in killed if job.cluster == "slurm")
    for job in killed:
        how = records.get(job.job, "no record of how it ended")
        console.print(f"job {job.job} was ended: {how}", soft_wrap=True, markup=False)
        if how.startswith(_FAILURES):
            yield job, f"job {job.job}: {how}{last_line(job.log(folder))}"


def _records(jobs: Iterable[str]) -> dict[str, str]:
    """SLURM's words on how these jobs ended, where it keeps records."""
    wanted, deadline = set(jobs), time.monotonic() + RECORDS_S
    while True:
        found = slurm.endings(wanted)
        if found is None or found.keys() >= wanted or time.monotonic() >= deadline:
            return found or {}
        time.sleep(1.0)


def last_line(log: Path) -> str:
    """The last line that a job printed, after a colon; empty without one."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last}" if last else ""
