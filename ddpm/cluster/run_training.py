"""One training from its configuration: find its data and its directory, choose where it runs, show
it running.

Under torchrun every process runs this; rank 0 finds and holds the directory, and tells the others.
"""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ddpm import config as configuration
from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.workers import Workers, ray_address, torchrun_size, workers_for
from ddpm.config import Config
from ddpm.data import open_data, preparing
from ddpm.distributed import CPU, Group, best_device, process_group
from ddpm.errors import InputError, Interrupted, said_by_rank_0
from ddpm.metrics import inception_problems
from ddpm.runs import RunClaim, RunDirectory, Tail, claimed, failure_recorded, watch_runs
from ddpm.sampling import locate_run, start_problems
from ddpm.tracking import wandb_problems, wandb_tracker
from ddpm.training import TrainingJob, total_steps, work


def run(
    config: Config,
    *,
    new: bool,
    resume: str | None,
    should_stop: Callable[[], bool],
) -> int:
    """Train to the end and print where everything lies; 0. A finished run is not repeated."""
    with said_by_rank_0():
        workers = check(config)
    with process_group() if torchrun_size() else nullcontext(Group()) as group:
        if group.is_main:
            return _lead(config, workers, group, new=new, resume=resume, should_stop=should_stop)
        if job := _of_rank_0(group):
            work(job, group)
    return 0


def _lead(
    config: Config,
    workers: Workers,
    group: Group,
    *,
    new: bool,
    resume: str | None,
    should_stop: Callable[[], bool],
) -> int:
    """The training as the only process sees it, or the first of torchrun's."""
    console = Console()
    if resume and locate_run(Path(resume))[1] is not None:
        raise InputError(f"--resume {resume} is a checkpoint; give the run directory it lies in")
    index = preparing.prepare(config)
    data = open_data(config, index.folder)
    if resume:
        directory = RunDirectory(Path(resume))
    else:
        directory = RunDirectory.find_or_name(config, data.sha256, new=new)
    with claimed(directory, another=new) as claim:
        claim.run.refuse_another(config, data.sha256)
        if claim.run.is_finished:
            _of_rank_0(group)
        else:
            job = TrainingJob(
                config=configuration.to_dict(config),
                run_dir=str(claim.run.path),
                data_dir=str(index.folder.absolute()),
                threads=workers.cpus,
                command=tuple(sys.argv),
            )
            steps = total_steps(config.TRAINING, data.num_train)
            _train(job, claim, workers, group, steps, console, should_stop)
    _print_summary(RunDirectory(claim.run.path), console)
    return 0


def _train(
    job: TrainingJob,
    claim: RunClaim,
    workers: Workers,
    group: Group,
    steps: int,
    console: Console,
    should_stop: Callable[[], bool],
) -> None:
    """In this process with one worker or under torchrun, else through Ray Train."""
    console.print(f"run directory: {job.run_dir}", soft_wrap=True)
    tail = Tail(Path(job.run_dir), "training", steps)
    if workers.count == 1 or group.size > 1:
        device = best_device() if workers.gpus else CPU
        _of_rank_0(group, job)
        # alone it records its failure itself
        recorded = failure_recorded(claim.run.path) if group.size > 1 else nullcontext()
        with watch_runs([tail], console), recorded:
            work(
                job,
                group if group.size > 1 else Group(device=device),
                tracker=wandb_tracker(None),
                should_stop=should_stop,
                on_held=claim.release,
            )
        return
    from ddpm.cluster import ray_train

    # else its workers would wait for machines and then for the lock, as long as the holder trains
    claim.run.refuse_held(wait_s=ray_train.LOCK_PATIENCE_S)
    with (
        running_ray(workers.count * workers.cpus),
        watch_runs([tail], console, should_stop=should_stop, on_stop=claim.run.request_stop),
    ):
        ray_train.run(job, workers, meanwhile=claim.release_if_held)


def _of_rank_0(group: Group, job: TrainingJob | None = None) -> TrainingJob | None:
    """The job that rank 0 calls this with, on every process; None where there is nothing to do."""
    own = torch.tensor(list(json.dumps(job and asdict(job)).encode()), dtype=torch.uint8)
    first, *_ = group.passing(own)
    told = json.loads(bytes(first.tolist()))
    return TrainingJob(**told | {"command": tuple(told["command"])}) if told else None


def check(config: Config) -> Workers:
    """The workers of a training that can start; InputError with all that keeps it from it."""
    workers, problems = None, [*preparing.source_problems(config), *start_problems(config)]
    problems += [*inception_problems(config), *wandb_problems()]
    try:
        workers = workers_for(config)
        if workers.gpus and not torch.cuda.is_available() and not ray_address():
            problems.append(
                "there are GPUs but torch sees none; run `ddpm doctor`, or set "
                "CLUSTER.GPUS_PER_WORKER=0 to train on CPUs"
            )
    except InputError as error:
        problems += error.problems
    if workers is None or problems:
        raise InputError(problems)
    return workers


def _print_summary(directory: RunDirectory, console: Console) -> None:
    facts: dict[str, Any] = directory.summary
    if not facts:
        raise Interrupted(f"{directory.path} is unfinished; run the same command again to continue")
    console.print(
        f"done: {facts['steps']} steps, {facts['images']:,} images, {facts['seconds']:.0f} s, "
        f"{facts['images_per_s']:,.0f} images/s, final loss {facts['final_loss']:.4f}"
    )
    console.print(f"results: {directory.path}", soft_wrap=True)
