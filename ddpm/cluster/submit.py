"""What submitit runs in a task: a process `python -m MODULE FILE`, and the signals to it.

Only the class and the path of the file are pickled. The process reads plain data.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import psutil
import submitit
from submitit.helpers import DelayedSubmission

from ddpm.cluster import slurm
from ddpm.cluster.slurm import GPU_OPTIONS, VARIABLES, from_environment, minutes, options_in
from ddpm.errors import InputError, Interrupted
from ddpm.runs import storage
from ddpm.sampling import Span, bulk
from ddpm.sweep import Ledger, Outcome

SAVE_S = 100.0  # the process may take so long of the time before the limit
POLL_S = 0.2


class FileTask:
    """What submitit calls in a task: does in a child process what a file says.

    command: of `python -m ddpm.cluster`, what the child runs.  requeues: how often the job may be put into the queue again.
    """

    command: ClassVar[str]
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


# --------
# When the process that a task has started is to save and stop: on SIGTERM, SIGUSR2 and SIGINT, and
# when the process at the other end of the pipe that its standard input is has gone.
#
# Those signals are blocked from the first instant on and taken by a thread that waits for them.
# SLURM sends them to every process of a step, and children inherit the block: what this process has
# started (W&B's service, a compiler) lives on until all is saved.

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def stop_asked() -> Callable[[], bool]:
    """Block the signals for good; whether one has come, or the starter of this process has gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    asked = threading.Event()

    def wait_for_signals() -> None:
        while True:
            name = signal.Signals(signal.sigwait(SIGNALS)).name
            print(f"{name}: saving, then stopping", file=sys.stderr, flush=True)
            asked.set()

    def wait_for_starter() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        asked.set()

    threading.Thread(target=wait_for_signals, daemon=True).start()
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=wait_for_starter, daemon=True).start()
    return asked.is_set


# --------
# A group of trials as plain data: what one array task trains, and how far it has come.
#
#     jobs/GROUP.json       everything the task needs, written once before it is submitted
#     jobs/GROUP.journal    a line when a trial begins, when it ends, and when the task ends
#
# A task that is requeued, or that a crash of one trial has ended, goes on after the journal's last
# line; a killed task leaves the name of the trial that it was at.


@dataclass(frozen=True, kw_only=True)
class TrialBatch:
    """Trials that one process trains one after the other.

    path: its file.  folder: of the sweep.  outcomes: the blank ones.  jobs: the training of each,
    a Job of ddpm/training/worker.py as a dictionary.
    resources: what a trial takes.
    """

    path: Path
    sweep: str
    folder: Path
    outcomes: tuple[Outcome, ...]
    jobs: tuple[Mapping[str, Any], ...]
    resources: Mapping[str, Any]

    def write(self) -> None:
        """Keeps it at its path, for its owner's eyes."""
        storage.make_folder(self.path.parent)
        storage.write_json(
            self.path,
            {
                "sweep": self.sweep,
                "folder": str(self.folder),
                "resources": dict(self.resources),
                "trials": [
                    {"outcome": asdict(outcome), "job": dict(job)}
                    for outcome, job in zip(self.outcomes, self.jobs, strict=True)
                ],
            },
        )

    @classmethod
    def read(cls, path: Path) -> "TrialBatch":
        """The group that was written at `path`."""
        facts = storage.read_json(path)
        trials: list[dict[str, Any]] = facts["trials"]
        return cls(
            path=path,
            sweep=facts["sweep"],
            folder=Path(facts["folder"]),
            outcomes=tuple(Outcome(**trial["outcome"]) for trial in trials),
            jobs=tuple(trial["job"] for trial in trials),
            resources=facts["resources"],
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
        storage.append_line(self.path, json.dumps(line))

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


# --------
# jobs.json of a sweep folder, or of a series of images: which submitted job holds which trials or
# images, and which of them live.

FILE = "jobs.json"
Cluster = Literal["slurm", "local", "debug"]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job and what it holds.

    job: SLURM's id (`123_4`), or the process that a local job runs in.  name: what SLURM calls it.
    trials: their ids, or the images' numbers.  group: file of the group.
    """

    job: str
    name: str
    cluster: Cluster
    trials: tuple[str, ...]
    group: str

    @property
    def journal(self) -> Journal:
        return Journal(Path(self.group))


def read_jobs(folder: Path) -> list[Submitted]:
    """The jobs of `folder`, those that have ended among them."""
    path = folder / FILE
    entries = json.loads(path.read_text()) if path.exists() else []
    return [Submitted(**(entry | {"trials": tuple(entry["trials"])})) for entry in entries]


def write(folder: Path, jobs: Sequence[Submitted]) -> None:
    """Keeps the list."""
    storage.write_json(folder / FILE, [asdict(job) for job in jobs])


def living_jobs(jobs: Iterable[Submitted]) -> list[Submitted] | None:
    """Those that wait or run; None while that cannot be known."""
    found, queues = [], {}
    for job in jobs:
        if job.cluster == "slurm":
            if job.name not in queues:
                queues[job.name] = slurm.living(job.name)
            queue = queues[job.name]
            if queue is None:
                return None
            lives = job.job in queue
        else:
            lives = job.cluster == "local" and _is_local_job(job)
        if lives:
            found.append(job)
    return found


def _is_local_job(job: Submitted) -> bool:
    """Whether the process is there and is that job: numbers of processes come again."""
    try:
        process = psutil.Process(int(job.job))
        is_ours = "submitit.local._local" in process.cmdline()
        return is_ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# --------
# Jobs that were submitted, watched from here until the last has ended.

QUEUE_POLL_S = {"slurm": 3.0, "local": 0.5}
RECORDS_S = 10.0  # sacct may lag behind
FAILURES = ("FAILED", "OUT_OF_MEMORY")  # what the work is to blame for; the rest interrupts it


def living(folder: Path) -> list[Submitted]:
    """The jobs of an earlier command that still wait or run; InputError when SLURM cannot say."""
    found = living_jobs(read_jobs(folder))
    if found is None:
        raise InputError(
            f"{folder / FILE} names jobs and squeue does not answer, so that nobody knows "
            "whether they run; try again when SLURM is back"
        )
    return found


def how_to(jobs: Sequence[Submitted], look: str, stop_file: Path) -> str:
    """How to look after the jobs without this process.  look: the command that shows them."""
    ids = " ".join(dict.fromkeys(job.job.partition("_")[0] for job in jobs))
    stop = f"scancel {ids}"
    if jobs[0].cluster != "slurm":
        stop = shlex.join(["touch", str(stop_file)])
    return f"look: {look}    stop: {stop}    detach: Ctrl-C"


def until_the_end(
    jobs: Sequence[Submitted], should_stop: Callable[[], bool]
) -> Iterator[list[Submitted]]:
    """Yields the jobs that live, again and again until none does; at once when a stop is asked for.

    Of those that are gone it is known for sure: a job on its way back into the queue may be missing
    for a moment.
    """
    there, suspects = {job.job: job for job in jobs}, set[str]()
    while there:
        _sleep(QUEUE_POLL_S[jobs[0].cluster], should_stop)
        yield list(there.values())
        now = living_jobs(there.values())
        if now is None:
            continue
        gone = there.keys() - {job.job for job in now}
        for job in gone & suspects:  # twice
            del there[job]
        suspects = gone


def endings(jobs: Sequence[Submitted]) -> dict[str, str]:
    """What SLURM says of the jobs that did not end by themselves; nothing where it keeps no
    records.
    """
    killed = {j.job for j in jobs if j.cluster == "slurm" and j.journal.exit_code is None}
    deadline = time.monotonic() + RECORDS_S
    while True:
        found = slurm.endings(killed)
        if found is None or found.keys() == killed or time.monotonic() >= deadline:
            return {job: str(ending) for job, ending in (found or {}).items()}
        time.sleep(1.0)


def last_line(log: Path) -> str:
    """The last line that a job printed, after a colon; empty without one."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last}" if last else ""


def _sleep(seconds: float, should_stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not should_stop():
        time.sleep(0.2)


# --------
# What submitit runs in a task of a sweep: a process that trains a group of trials.


class GroupTask(FileTask):
    """Trains the group in its file. A child that dies (out of memory, a crash) fails the trial it
    was at; another goes on with the rest.
    """

    command = "trials"

    def goes_on(self, reason: str) -> bool:
        """Whether a trial was to blame, so that the others still have a chance."""
        return TrialBatch.read(Path(self.file)).record_death(reason) is not None


# --------
# Files of work as jobs of submitit: an array job on SLURM, processes here ("local"), or one after
# the other in this process ("debug").
#
# What travels is the path of a file, never code or data: submitit pickles a FileTask.

SIGNAL_S = 120  # SLURM asks a task to save so long before its time is up
_OURS = ("array", "error", "open-mode", "output", "signal", "wrap", "nodes", "ntasks-per-node")


@dataclass(frozen=True, kw_only=True)
class JobResources:
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


class JobPart(Protocol):
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


def script(request: JobResources, folder: Path, tasks: int) -> str:
    """The batch script that submitit would give to sbatch for an array of `tasks` tasks."""
    executor: Any = _executor(request, folder)._executor
    if tasks > 1:
        executor.parameters["map_count"] = tasks
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
    return text


def submit(
    request: JobResources, folder: Path, parts: Sequence[JobPart], task: type[FileTask] = GroupTask
) -> Iterator[list[Submitted]]:
    """Submit a task for each part; each yield is an array job, submitted just now.

    folder: of submitit, only for its owner. On SLURM an array has as many tasks as the site allows.
    """
    storage.make_folder(folder)
    folder.chmod(0o700)
    chunk = slurm.largest_array() if request.cluster == "slurm" else 1
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


def run_here(folder: Path, parts: Sequence[JobPart], task: type[FileTask] = GroupTask) -> None:
    """Do the parts one after the other, as submitit's "debug" does."""
    storage.make_folder(folder)
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


def _executor(request: JobResources, folder: Path) -> submitit.AutoExecutor:
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
def undisturbed(request: JobResources, text: str) -> Iterator[None]:
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


# --------
# How long a task may take, how often it may be queued again, and what else sbatch is told.

LEAST_MINUTES = 15  # submitit takes the end of a shorter job for its time limit
DEFAULT_MINUTES = 60
REQUEUES = 100


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the command line and the environment say.  options: of sbatch, the partition among
    them.
    """

    minutes: int
    requeues: int
    options: Mapping[str, str | bool]


def read_limits(
    time: str | None,
    partition: str | None,
    sbatch: Sequence[str],
    problems: list[str],
    *,
    instead: Mapping[str, str] | None = None,
) -> Limits:
    """The limits; what is wrong is added to `problems`.

    time: as SLURM writes it; None is the site's, or an hour.  instead: as in check_options().
    """
    asked: dict[str, str | bool] = {}
    limit, requeues = DEFAULT_MINUTES, REQUEUES
    try:
        asked = check_options(sbatch, instead=instead)
        requeues = _requeues()
        limit = minutes(time or from_environment(os.environ).get("time") or str(limit))
    except InputError as error:
        problems += error.problems
    if limit < LEAST_MINUTES:
        problems.append(
            f"a time limit of {limit} minutes is too short to save and to queue again; give "
            f"--time {LEAST_MINUTES} or more"
        )
    if partition:
        asked["partition"] = partition
    return Limits(minutes=limit, requeues=requeues, options=asked)


def _requeues() -> int:
    text = os.environ.get("DDPM_REQUEUES", str(REQUEUES))
    if not text.isdecimal():
        raise InputError(f"DDPM_REQUEUES is {text!r}; give a whole number such as {REQUEUES}")
    return int(text)


# --------
# What one job of a series draws, as plain data: written once before the job is submitted.


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """The images that one job draws, a unit after the other.

    path: its file, in `jobs` of the series.  folder: of the series.
    """

    path: Path
    folder: Path
    wanted: tuple[Span, ...]

    def write(self) -> None:
        """Keeps it at its path, for its owner's eyes."""
        storage.make_folder(self.path.parent)
        storage.write_json(
            self.path,
            {"folder": str(self.folder), "images": [[s.start, s.stop] for s in self.wanted]},
        )

    @classmethod
    def read(cls, path: Path) -> "TaskFile":
        """The draws that were written at `path`."""
        facts = storage.read_json(path)
        return cls(
            path=path,
            folder=Path(facts["folder"]),
            wanted=tuple(Span(start, stop) for start, stop in facts["images"]),
        )

    @property
    def journal(self) -> Journal:
        return Journal(self.path)

    @property
    def holds(self) -> tuple[str, ...]:
        """The images by their spans, for the list of jobs."""
        return tuple(map(str, self.wanted))


def shared_out(missing: Sequence[Span], unit: int, tasks: int) -> list[list[Span]]:
    """The missing images in so many parts at most, whole units each, as even as units go."""
    pieces = bulk.cut(missing, unit)
    tasks = min(tasks, len(pieces))
    bounds = [len(pieces) * task // tasks for task in range(tasks + 1)] if tasks else [0]
    return [bulk.union(pieces[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


# --------
# What submitit runs in a task that draws images: a process that draws the units in its file.


class DrawTask(FileTask):
    """Draws the images in its file. A child that dies leaves a hole of one unit; another goes on
    while each of them gets a unit done.
    """

    command = "images"
    _done = 0

    def goes_on(self, reason: str) -> bool:
        """Whether the child has drawn a unit before it died."""
        before, self._done = self._done, len(TaskFile.read(Path(self.file)).journal.ended)
        print(f"{self.file}: {reason}", flush=True)
        return self._done > before
