"""Jobs that were submitted, watched from here until the last has ended."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ddpm import job_list, slurm_queue
from ddpm.errors import InputError
from ddpm.job_list import Submitted

QUEUE_POLL_S = {"slurm": 3.0, "local": 0.5}
RECORDS_S = 10.0  # sacct may lag behind
FAILURES = ("FAILED", "OUT_OF_MEMORY")  # what the work is to blame for; the rest interrupts it


def living(folder: Path) -> list[Submitted]:
    """The jobs of an earlier command that still wait or run; InputError when SLURM cannot say."""
    found = job_list.living(job_list.read(folder))
    if found is None:
        raise InputError(
            f"{folder / job_list.FILE} names jobs and squeue does not answer, so that nobody knows "
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
        now = job_list.living(there.values())
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
        found = slurm_queue.endings(killed)
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
