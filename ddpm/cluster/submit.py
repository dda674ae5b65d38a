"""Work in files, done by jobs of submitit: an array on SLURM, processes here ("local"), or one
after the other in this process ("debug").

    jobs/NAME.json       what one task does, written before it is submitted
    jobs/NAME.journal    a line when the task begins an item (a trial, some images) and ends it
    jobs.json            which job has which items
    submitit/            of submitit: logs, and a pickled FileTask, the path of a file

submitit makes the batch script, submits arrays, requeues on USR2. What runs and how a job ended is
asked of squeue, sacct and the journal: submitit's Job.state is a minute old, without sacct it stays
UNKNOWN, and Job.result() unpickles what lies on disk.
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
from typing import Any, Literal, Protocol

import psutil
import submitit
from submitit.helpers import DelayedSubmission

from ddpm.cluster import slurm
from ddpm.cluster.slurm import GPU_OPTIONS, VARIABLES, from_environment, minutes, options_in
from ddpm.errors import InputError, Interrupted
from ddpm.runs import storage

Cluster = Literal["slurm", "local", "debug"]
FILE = "jobs.json"
SAVE_S = 100.0  # the process may take so long of the time before the limit
SIGNAL_S = 120  # SLURM asks a task to save so long before its time is up
LEAST_MINUTES = 15  # submitit takes the end of a shorter job for its time limit
DEFAULT_MINUTES = 60
REQUEUES = 100
RECORDS_S = 10.0  # sacct may lag behind
FAILURES = ("FAILED", "OUT_OF_MEMORY")  # ends that the work is to blame for; others interrupt it
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
_POLL_S = 0.2
_QUEUE_POLL_S = {"slurm": 3.0, "local": 0.5}
_OURS = ("array", "error", "open-mode", "output", "signal", "wrap", "nodes", "ntasks-per-node")


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
        """The items in the order in which they began, each once."""
        return list(dict.fromkeys(line["begin"] for line in self._lines() if "begin" in line))

    @property
    def ended(self) -> set[str]:
        """The items that this task will not try again."""
        return {
            line["end"]
            for line in self._lines()
            if "end" in line and line["status"] in ("done", "failed")
        }

    @property
    def open_item(self) -> str | None:
        """The item that began last, while nothing says that it ended."""
        lines = [line for line in self._lines() if "died" not in line]
        return lines[-1].get("begin") if lines else None

    @property
    def death(self) -> str | None:
        """What the process at the open item died of; None while nobody has seen it dead."""
        lines = self._lines()
        return lines[-1].get("died") if lines else None

    @property
    def last_begun(self) -> str | None:
        """The item that began last, whether it has ended or not."""
        return next((line["begin"] for line in reversed(self._lines()) if "begin" in line), None)

    @property
    def exit_code(self) -> int | None:
        """How the task ended, None while it runs or when it was killed."""
        lines = self._lines()
        return lines[-1].get("exit") if lines else None

    def _append(self, **line: object) -> None:
        storage.append_line(self.path, json.dumps(line))

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
            before, begun = begun, len(journal.begun)
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
            time.sleep(_POLL_S)
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
                time.sleep(_POLL_S)
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


def stop_asked() -> Callable[[], bool]:
    """Whether a child is to save and stop: SIGTERM, SIGUSR2 or SIGINT came, or its FileTask is
    dead, which held the other end of the pipe that is standard input.

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


class TaskFile(Protocol):
    """The file of one task, and its items by name."""

    @property
    def path(self) -> Path: ...
    @property
    def items(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, kw_only=True)
class JobResources:
    """Request of every task.

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


@dataclass(frozen=True, kw_only=True)
class JobLimits:
    """Time limit, requeues and options of sbatch, from the command line and the environment."""

    minutes: int
    requeues: int
    options: Mapping[str, str | bool]


def read_limits(
    time: str | None,
    partition: str | None,
    sbatch: Sequence[str],
    problems: list[str],
    *,
    instead: Mapping[str, str],
) -> JobLimits:
    """The limits; what is wrong is added to `problems`.

    time: as SLURM writes it; None is the site's, or an hour.  sbatch: KEY=VALUE or KEY, sbatch's
    long options.  instead: of options that have another way to be given, that way.
    """
    options: dict[str, str | bool] = {}
    for text in sbatch:
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
            options[key.replace("-", "_")] = value if equals else True
    if partition:
        options["partition"] = partition
    requeues = os.environ.get("DDPM_REQUEUES", str(REQUEUES))
    if not requeues.isdecimal():
        problems.append(f"DDPM_REQUEUES is {requeues!r}; give a whole number such as {REQUEUES}")
    limit = DEFAULT_MINUTES
    try:
        limit = minutes(time or from_environment(os.environ).get("time") or str(limit))
    except InputError as error:
        problems += error.problems
    if limit < LEAST_MINUTES:
        problems.append(
            f"a time limit of {limit} minutes is too short to save and to queue again; give "
            f"--time {LEAST_MINUTES} or more"
        )
    return JobLimits(
        minutes=limit, requeues=int(requeues) if requeues.isdecimal() else 0, options=options
    )


def check_folder(folder: Path, key: str) -> None:
    """InputError for a folder whose name SLURM would read as a pattern.  key: what chooses it."""
    if re.search(r"[%\\]", str(folder)):
        raise InputError(
            f"{str(folder)!r}: SLURM cannot write logs into a folder with '%' or a backslash in "
            f"its name; choose another {key}"
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

    def log(self, folder: Path) -> Path:
        """Its output; folder: of the sweep or of the images."""
        return folder / "submitit" / f"{self.job}_0_log.out"


def submit(
    resources: JobResources,
    folder: Path,
    command: str,
    files: Sequence[TaskFile],
    living: Sequence[Submitted],
) -> Iterator[list[Submitted]]:
    """Submit a task for each file; each yield is an array job, just submitted, and in jobs.json.

    folder: of the sweep or of the images; submitit's in it is only for its owner. An array has as
    many tasks as the site allows.  living: earlier jobs that stay in jobs.json.
    """
    own = folder / "submitit"
    storage.make_folder(own)
    own.chmod(0o700)
    known = list(living)
    size = slurm.largest_array() if resources.cluster == "slurm" else 1
    for number, start in enumerate(range(0, len(files), size)):
        some = files[start : start + size]
        executor = _executor(resources, own)
        if resources.cluster == "local" and resources.gpus:  # else all would use the first
            first = number * resources.gpus
            visible = list(range(first, first + resources.gpus))
            executor._executor.parameters["visible_gpus"] = visible
        tasks = [FileTask(command, str(file.path), resources.requeues) for file in some]
        apart = _detached() if resources.cluster == "local" else nullcontext()
        with apart, undisturbed(resources, script(resources, own, len(some))):
            try:
                jobs = executor.submit_array(tasks)
            except submitit.core.utils.FailedJobError as error:
                lines = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
                raise InputError(lines or str(error)) from error
        array = [
            Submitted(
                job=job.job_id,
                name=resources.name,
                cluster=resources.cluster,
                trials=file.items,
                group=str(file.path),
            )
            for job, file in zip(jobs, some, strict=True)
        ]
        known += array
        storage.write_json(folder / FILE, [asdict(job) for job in known])
        yield array


def run_here(folder: Path, command: str, files: Sequence[TaskFile]) -> None:
    """Do the files one after the other, as submitit's "debug" does."""
    storage.make_folder(folder / "submitit")
    executor = submitit.AutoExecutor(folder / "submitit", cluster="debug")
    for job in executor.submit_array([FileTask(command, str(file.path), 0) for file in files]):
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
    path = folder / FILE
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
    """Whether the process is there and is that job: numbers of processes come again."""
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
            f"{folder / FILE} names jobs and squeue does not answer, so that nobody knows "
            "whether they run; try again when SLURM is back"
        )
    return found


def until_the_end(
    jobs: Sequence[Submitted], should_stop: Callable[[], bool]
) -> Iterator[list[Submitted]]:
    """Yields the jobs that live, again and again until none does; at once when a stop is asked for.

    A job on its way back into the queue may be missing for a moment: it is gone when it is missing
    twice.
    """
    there, suspects = {job.job: job for job in jobs}, set[str]()
    while there:
        deadline = time.monotonic() + _QUEUE_POLL_S[jobs[0].cluster]
        while time.monotonic() < deadline and not should_stop():
            time.sleep(_POLL_S)
        yield list(there.values())
        now = living_jobs(there.values())
        if now is None:
            continue
        gone = there.keys() - {job.job for job in now}
        for job in gone & suspects:
            del there[job]
        suspects = gone


def endings(jobs: Sequence[Submitted]) -> dict[str, str]:
    """SLURM's words on the jobs that did not end by themselves, where it keeps records."""
    killed = {j.job for j in jobs if j.cluster == "slurm" and j.journal.exit_code is None}
    deadline = time.monotonic() + RECORDS_S
    while True:
        found = slurm.endings(killed)
        if found is None or found.keys() >= killed or time.monotonic() >= deadline:
            return found or {}
        time.sleep(1.0)


def how_to(jobs: Sequence[Submitted], look: str, stop_file: Path) -> str:
    """Advice on jobs without this process.  look: the command that shows them."""
    ids = " ".join(dict.fromkeys(job.job.partition("_")[0] for job in jobs))
    stop = f"scancel {ids}"
    if jobs[0].cluster != "slurm":
        stop = shlex.join(["touch", str(stop_file)])
    return f"look: {look}    stop: {stop}    detach: Ctrl-C"


def last_line(log: Path) -> str:
    """The last line that a job printed, after a colon; empty without one."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {last}" if last else ""
