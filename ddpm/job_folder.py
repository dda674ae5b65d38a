"""The folder through which the processes of one SLURM job find each other: OUTPUT_DIR/.jobs/JOB.

    job.json      what all nodes must agree on; a node that does not see it does not see OUTPUT_DIR
    token         the secret without which nobody talks to the job's Ray
    head.json     where Ray's head listens, once it does

It lives as long as the job. Only its owner may enter it.
"""

import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from ddpm import durable
from ddpm.allocation import Allocation
from ddpm.config import Config
from ddpm.errors import DdpmError, InputError, Interrupted
from ddpm.shards import source_problems
from ddpm.workers import workers_for, workers_of_evaluation

FOLDER = "DDPM_RAY_FOLDER"  # the variable that names the folder to the job's processes
STALE_S = 86_400.0
_NO_JOB = "--plan is for the batch scripts in slurm/: there is no SLURM job here"
_LOOK_S = 0.3  # all nodes of a job look for the same file


class JobFolder:
    """The folder of one job, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token, self._job, self._head = (path / n for n in ("token", "job.json", "head.json"))

    @classmethod
    def make(cls, output_dir: Path, job: Allocation) -> "JobFolder":
        """A fresh folder for this start of the job; what dead jobs left is removed."""
        jobs = output_dir.absolute() / ".jobs"
        folder = cls(jobs / job.job_id)
        for old in jobs.glob("*"):
            with suppress(OSError):
                if old == folder.path or time.time() - old.stat().st_mtime > STALE_S:
                    shutil.rmtree(old)
        durable.make_folder(folder.path)
        descriptor = os.open(folder.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        durable.write_json(folder._job, {"num_nodes": job.num_nodes, "versions": versions()})
        return folder

    def check(self, node: str) -> None:
        """InputError where a node does not fit into the job."""
        if not self._job.exists():
            raise InputError(
                f"node {node} does not see {self._job}, which the job's first node wrote: "
                "TRAINING.OUTPUT_DIR must lie on a file system that all nodes share"
            )
        known = durable.read_json(self._job)["versions"]
        for name, version in versions().items():
            if known[name] != version:
                raise InputError(
                    f"node {node} has {name} {version} but the job's first node has "
                    f"{known[name]}; give all nodes the same environment "
                    "(DDPM_PYTHON, DDPM_MODULES in slurm/site.env)"
                )

    @property
    def num_nodes(self) -> int:
        return int(durable.read_json(self._job)["num_nodes"])

    def announce(self, address: str) -> None:
        """Says where Ray's head listens."""
        durable.write_json(self._head, {"address": address})

    def keep(self) -> None:
        """Says that the job lives, to those that remove what dead jobs left; hourly will do."""
        with suppress(OSError):
            os.utime(self.path)

    def wait_for_head(
        self, patience_s: float, should_stop: Callable[[], bool] = lambda: False
    ) -> str:
        """Where Ray's head listens; DdpmError when it does not in time, Interrupted on request."""
        deadline = time.monotonic() + patience_s
        while (address := self.address) is None:
            if should_stop():
                raise Interrupted("the job ended before Ray's head had started")
            if time.monotonic() > deadline:
                raise DdpmError(f"{self.path}: Ray's head did not start in {patience_s:.0f} s")
            time.sleep(_LOOK_S)
        return address

    @property
    def address(self) -> str | None:
        """Where Ray's head listens; None while it does not."""
        try:
            return str(json.loads(self._head.read_text())["address"])
        except FileNotFoundError:
            return None


def versions() -> dict[str, str]:
    """What must be the same on all nodes."""
    return {"Python": platform.python_version(), "Ray": metadata.version("ray")}


def plan(configs: list[Config], *, uses_ray: bool | None, output: Path) -> int:
    """Check configurations against the job's allocation, make the job's folder, and write its path
    and "1" or "0" (whether Ray is needed) to `output`, each ended by NUL for the batch script.

    uses_ray: None when it is a matter of the number of workers. Takes no torch and no Ray. Raises
    InputError with every problem.
    """
    job = Allocation.from_environment()
    if job is None:
        raise InputError(_NO_JOB)
    problems = [problem for config in configs for problem in source_problems(config)]
    count = 0
    for config in configs:
        try:
            count = max(count, workers_for(config).count)
        except InputError as error:
            problems += error.problems
        if not config.TRAINING.IS_NEW_TRAIN:
            from ddpm.starting import start_problems  # loads weights, so it takes torch

            problems += start_problems(config)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    needs_ray = count > 1 if uses_ray is None else uses_ray
    return _planned(job, Path(configs[0].TRAINING.OUTPUT_DIR), needs_ray, output)


def plan_evaluation(folder: Path, workers: int | None, output: Path) -> int:
    """The same for an evaluation, whose job's folder lies in `folder`."""
    job = Allocation.from_environment()
    if job is None:
        raise InputError(_NO_JOB)
    uses_ray = workers_of_evaluation(workers, all_nodes=True).count > 1
    return _planned(job, folder, uses_ray, output)


def _planned(job: Allocation, output_dir: Path, uses_ray: bool, output: Path) -> int:
    folder = JobFolder.make(output_dir, job)
    output.write_bytes(os.fsencode(folder.path) + b"\0" + str(int(uses_ray)).encode() + b"\0")
    return 0
