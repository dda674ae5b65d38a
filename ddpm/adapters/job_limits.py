"""How long a task may take, how often it may be queued again, and what else sbatch is told."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddpm.adapters import submitit_jobs
from ddpm.batch_script import from_environment, minutes
from ddpm.errors import InputError

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


def read(
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
        asked = submitit_jobs.check_options(sbatch, instead=instead)
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
