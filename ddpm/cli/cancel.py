"""Asks a run, the trials of a sweep or images in bulk to save and stop, wherever they are.

examples:
  ddpm cancel latest
  ddpm cancel training_outputs/sweeps/pred_types

What runs sees the request within a step; the same command as before continues it. Jobs that wait
in SLURM's queue, and the array jobs of a sweep or of images, are cancelled with scancel.
"""

import argparse
import subprocess
from collections.abc import Iterator
from pathlib import Path

from ddpm.cli.options import command_line
from ddpm.errors import DdpmError, InputError
from ddpm.runs import CONFIG_FILE, find_run, storage
from ddpm.sampling import is_bulk_folder
from ddpm.sweep import SWEEP_FILE


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm cancel`."""
    result = command_line("cancel", __doc__)
    result.add_argument(
        "run",
        type=find_run,
        help="run (directory, first digits of its id, latest), sweep folder, or images in bulk",
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Ask; 0, where nothing runs too."""
    folder: Path = parser().parse_args(argv).run
    is_sweep, is_bulk = (folder / SWEEP_FILE).is_file(), is_bulk_folder(folder)
    if not is_sweep and not is_bulk and not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder} is no run, no sweep and no images in bulk; give one")
    lines = _jobs(folder, is_bulk=is_bulk) if is_sweep or is_bulk else _run(folder)
    print("\n".join(lines) or f"{folder}: nothing runs or waits")
    return 0


def _run(folder: Path) -> Iterator[str]:
    """A line where a run was asked to stop."""
    from ddpm.cluster import Status
    from ddpm.runs import RunDirectory

    run = Status(folder).read()[0].rows[0]
    if run.state == "running":
        RunDirectory(folder).request_stop()
        yield f"{folder}: asked to save and stop"
    elif run.state == "queued" and run.job:
        yield from _scancel([run.job])


def _jobs(folder: Path, *, is_bulk: bool) -> Iterator[str]:
    """A line for everything of a sweep, or of images in bulk, that was asked to stop."""
    from ddpm.cluster import JOBS_STOP_FILE, living

    jobs = living(folder)
    if jobs or is_bulk or storage.is_held(folder / "sweep.lock"):
        storage.write_text(folder / JOBS_STOP_FILE, "")
        yield f"{folder}: asked to save and stop"
    yield from _scancel(
        list(dict.fromkeys(one.job.partition("_")[0] for one in jobs if one.cluster == "slurm"))
    )


def _scancel(jobs: list[str]) -> Iterator[str]:
    if jobs:
        done = subprocess.run(["scancel", *jobs], capture_output=True, text=True)
        if done.returncode:
            raise DdpmError(f"scancel {' '.join(jobs)}: {done.stderr.strip()}")
        yield f"scancel {' '.join(jobs)}"
