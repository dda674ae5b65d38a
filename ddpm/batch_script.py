"""A batch script as sbatch reads it: its #SBATCH lines, and the SBATCH_* variables that outrank
them.
"""

import re
import shlex
from collections.abc import Mapping

from ddpm.errors import InputError

# sbatch's options by the variable that sets them; the command line outranks both
VARIABLES = {
    "account": "SBATCH_ACCOUNT",
    "array": "SBATCH_ARRAY_INX",
    "constraint": "SBATCH_CONSTRAINT",
    "cpus-per-gpu": "SBATCH_CPUS_PER_GPU",
    "error": "SBATCH_ERROR",
    "exclusive": "SBATCH_EXCLUSIVE",
    "export": "SBATCH_EXPORT",
    "gpus": "SBATCH_GPUS",
    "gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "gpus-per-task": "SBATCH_GPUS_PER_TASK",
    "gres": "SBATCH_GRES",
    "hint": "SBATCH_HINT",
    "job-name": "SBATCH_JOB_NAME",
    "mem": "SBATCH_MEM_PER_NODE",
    "mem-per-cpu": "SBATCH_MEM_PER_CPU",
    "mem-per-gpu": "SBATCH_MEM_PER_GPU",
    "no-requeue": "SBATCH_NO_REQUEUE",
    "open-mode": "SBATCH_OPEN_MODE",
    "output": "SBATCH_OUTPUT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "requeue": "SBATCH_REQUEUE",
    "reservation": "SBATCH_RESERVATION",
    "signal": "SBATCH_SIGNAL",
    "time": "SBATCH_TIMELIMIT",
    "wait": "SBATCH_WAIT",
    "wckey": "SBATCH_WCKEY",
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
