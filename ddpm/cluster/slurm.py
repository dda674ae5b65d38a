"""SLURM: a batch script's options, the queue, and how jobs ended.

Jobs are named as SLURM prints them: `123`, or `123_4` for a task of an array.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ddpm.errors import InputError

WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"))
ASK_EVERY_S = 15.0
_ANSWER_S, _PATIENCE_S = 30.0, 5.0
_DEFAULT_ARRAY = 1001  # SLURM's own default of MaxArraySize


# Options of sbatch and the variable that sets each. The variables outrank the #SBATCH lines of a
# script, the command line outranks both.
_OPTIONS = (
    "account array constraint cpus-per-gpu error exclusive export gpus gpus-per-node gpus-per-task "
    "gres hint job-name mem mem-per-cpu mem-per-gpu no-requeue open-mode output partition qos "
    "requeue reservation signal time wait wckey"
)
VARIABLES = {
    **{name: f"SBATCH_{name.upper().replace('-', '_')}" for name in _OPTIONS.split()},
    "array": "SBATCH_ARRAY_INX",
    "mem": "SBATCH_MEM_PER_NODE",
    "time": "SBATCH_TIMELIMIT",
}
GPU_OPTIONS = ("gpus", "gpus-per-node", "gpus-per-task", "gres")
_SHORT = {
    "-A": "account",
    "-C": "constraint",
    "-J": "job-name",
    "-N": "nodes",
    "-c": "cpus-per-task",
    "-e": "error",
    "-n": "ntasks",
    "-o": "output",
    "-p": "partition",
    "-q": "qos",
    "-t": "time",
}
_LINE = re.compile(r"#SBATCH\s+(-[A-Za-z]|--[a-z-]+)(?:[ =]?(\S.*?))?\s*(\s#.*)?")
_DAYS_HOURS = re.compile(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?")
_CLOCK = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))?")


def from_environment(env: Mapping[str, str]) -> dict[str, str]:
    """sbatch's options that SBATCH_* variables set."""
    return {option: env[name] for option, name in VARIABLES.items() if name in env}


def option_of(line: str) -> str | None:
    """The long name of the option that a #SBATCH line sets; None for any other line."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    return _SHORT.get(found[1], found[1].removeprefix("--"))


def options_in(script: str) -> set[str]:
    """The options that a script's #SBATCH lines set."""
    return {option for line in _head(script) if (option := option_of(line))}


def as_submitted(script: str, env: Mapping[str, str]) -> str:
    """The script with its #SBATCH lines as they stand once the variables have outranked them."""
    given, head = from_environment(env), _head(script)
    lines = []
    for line in head:
        option = option_of(line)
        if option in given:
            line = _line(option, given.pop(option))
        lines.append(line)
    place = 1 + max((i for i, line in enumerate(lines) if option_of(line)), default=0)
    lines[place:place] = [_line(option, value) for option, value in given.items()]
    return "\n".join([*lines, *script.splitlines()[len(head) :]])


def minutes(text: str) -> int:
    """A time limit as SLURM writes it (90, 1:30:00, 2-12:00), in whole minutes; InputError."""
    if found := _DAYS_HOURS.fullmatch(text):
        days, hours, mins, secs = (int(part or 0) for part in found.groups())
        return (days * 24 + hours) * 60 + mins + (secs > 0)
    if found := _CLOCK.fullmatch(text):
        parts = [int(part) for part in found.groups() if part is not None]
        if len(parts) == 3:
            return parts[0] * 60 + parts[1] + (parts[2] > 0)
        return parts[0] + (len(parts) == 2 and parts[1] > 0)
    raise InputError(f"time limit {text!r}: give minutes, HH:MM:SS or D-HH:MM:SS, such as 4:00:00")


def _head(script: str) -> list[str]:
    """The lines in which sbatch looks for options: those before the first command."""
    lines = script.splitlines()
    command = (i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    return lines[: next(command, len(lines))]


def _line(option: str, value: str) -> str:
    return f"#SBATCH --{option}={shlex.quote(value)}    # {VARIABLES[option]}"


def require_slurm() -> None:
    """InputError where this machine cannot submit jobs."""
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not found on this machine; run this on a login node of the "
            "cluster (`module load slurm` where the site asks for it), or leave --cluster slurm out"
        )


def largest_array() -> int:
    """Most tasks of one array job at this site."""
    text = "\n".join(_answer("scontrol", "show", "config") or [])
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(match[1]) if match else _DEFAULT_ARRAY)


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job that waits or runs.  reason: of waiting, in SLURM's word."""

    name: str
    state: str
    reason: str

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING


def queue(timeout_s: float = _ANSWER_S) -> dict[str, QueuedJob] | None:
    """This user's jobs that wait or run, by id; None while SLURM does not answer."""
    lines = _answer(
        *("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%A|%T|%r|%j"),
        timeout_s=timeout_s,
    )
    if lines is None:
        return None
    found = {}
    for line in lines:
        job, number, state, reason, name = line.strip().split("|", 4)
        # a task that waits has its array's number, which is no name of its own
        for key in {job, number if state not in WAITING else job}:
            found[key] = QueuedJob(name=name, state=state, reason=reason)
    return found


def endings(jobs: Iterable[str], timeout_s: float = _ANSWER_S) -> dict[str, str] | None:
    """Ends of these jobs: `NODE_FAIL`, or `FAILED, exit code 4` where the state says no more; one
    that SLURM has no record of (yet) is missing. None where it keeps none.
    """
    wanted = sorted(set(jobs))
    if not wanted:
        return {}
    lines = _answer(
        *("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(wanted)}"),
        "--format=JobID,JobIDRaw,State,ExitCode",
        timeout_s=timeout_s,
    )
    if lines is None:
        return None
    found = {}
    for line in lines:
        job, number, state, exit_code = line.split("|")[:4]
        is_bare = state in ("COMPLETED", "FAILED") and exit_code.endswith(":0")
        text = f"{state}, exit code {exit_code.partition(':')[0]}" if is_bare else state
        found[job] = found[number] = text
    return found


class JobStates:
    """The queue and the endings for those who only look: asked seldom, answered soon or not at all.
    Where SLURM's commands are missing it knows nothing.
    """

    def __init__(self) -> None:
        self.is_known = False  # whether squeue answers
        self._queue: dict[str, QueuedJob] = {}
        self._ends: dict[str, str] = {}
        self._asked: set[str] = set()
        self._next = 0.0

    def refresh(self) -> None:
        """Asks squeue again if that was long enough ago."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + ASK_EVERY_S
        answer = queue(_PATIENCE_S)
        self.is_known = answer is not None
        self._queue, self._asked = answer or {}, set()

    def living(self, job: str | None) -> QueuedJob | None:
        """The job while it waits or runs."""
        return self._queue.get(job or "")

    def learn_ends(self, jobs: Iterable[str | None]) -> bool:
        """Asks sacct, once, how these jobs ended; whether it was asked."""
        known = self._queue.keys() | self._ends.keys() | self._asked
        wanted = {job for job in jobs if job} - known
        if not wanted or not self.is_known:
            return False
        self._asked |= wanted
        self._ends |= endings(wanted, _PATIENCE_S) or {}
        return True

    def end(self, job: str | None) -> str:
        """End of a job, in SLURM's words; empty when that is not known."""
        return self._ends.get(job or "", "")


def _answer(*command: str, timeout_s: float = _ANSWER_S) -> list[str] | None:
    """The lines of a command's answer; None when it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()
