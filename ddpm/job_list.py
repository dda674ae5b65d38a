"""jobs.json of a sweep folder, or of a series of images: which submitted job holds which trials or
images, and which of them live.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psutil

from ddpm import durable, slurm_queue
from ddpm.groups import Journal

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


def read(folder: Path) -> list[Submitted]:
    """The jobs of `folder`, those that have ended among them."""
    path = folder / FILE
    entries = json.loads(path.read_text()) if path.exists() else []
    return [Submitted(**(entry | {"trials": tuple(entry["trials"])})) for entry in entries]


def write(folder: Path, jobs: Sequence[Submitted]) -> None:
    """Keeps the list."""
    durable.write_json(folder / FILE, [asdict(job) for job in jobs])


def living(jobs: Iterable[Submitted]) -> list[Submitted] | None:
    """Those that wait or run; None while that cannot be known."""
    found, queues = [], {}
    for job in jobs:
        if job.cluster == "slurm":
            if job.name not in queues:
                queues[job.name] = slurm_queue.living(job.name)
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
