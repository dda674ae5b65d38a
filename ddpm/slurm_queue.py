"""What SLURM says of jobs: which live (squeue), how the others ended (sacct), what the site allows.

Jobs are named as SLURM prints them: `123`, or `123_4` for a task of an array.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from ddpm.errors import InputError

_ANSWER_S = 30.0
_DEFAULT_ARRAY = 1001  # SLURM's own default of MaxArraySize


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a job ended: SLURM's state in one word (OUT_OF_MEMORY), and its exit code as `1:0`."""

    state: str
    exit_code: str

    def __str__(self) -> str:
        return f"{self.state}, exit code {self.exit_code}"


def require_slurm() -> None:
    """InputError where this machine cannot submit jobs."""
    missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
    if missing:
        raise InputError(
            f"{', '.join(missing)}: not found on this machine; run this on a login node of the "
            "cluster (`module load slurm` where the site asks for it), or leave --cluster slurm out"
        )


def living(name: str) -> set[str] | None:
    """This user's jobs called `name` that wait or run; None while SLURM does not answer."""
    text = ask("squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%j")
    if text is None:
        return None
    rows = (line.strip().partition("|") for line in text.splitlines())
    return {job for job, _, called in rows if called == name}


def endings(jobs: Iterable[str]) -> dict[str, Ending] | None:
    """How these jobs ended; one that SLURM has no record of (yet) is missing. None where it keeps
    none.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    text = ask(
        *("sacct", "--noheader", "--allocations", "--parsable2", "--format=JobID,State,ExitCode"),
        f"--jobs={','.join(sorted({job.partition('_')[0] for job in wanted}))}",
    )
    if text is None:
        return None
    found = {}
    for line in text.splitlines():
        job, state, exit_code = line.split("|")[:3]
        if job in wanted:  # CANCELLED comes as `CANCELLED by 1000`
            found[job] = Ending(state=state.partition(" ")[0], exit_code=exit_code)
    return found


def largest_array() -> int:
    """Most tasks of one array job at this site."""
    text = ask("scontrol", "show", "config") or ""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", text, re.MULTILINE)
    return max(1, int(match[1]) if match else _DEFAULT_ARRAY)


def ask(*command: str, timeout_s: float = _ANSWER_S) -> str | None:
    """The answer of one of SLURM's commands; None when it is missing, fails or says nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
