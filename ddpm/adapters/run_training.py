"""One training from its configuration: find its data and its directory, choose where it runs, show
it running.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ddpm import config as configuration
from ddpm import shards
from ddpm.adapters.ray_cluster import available_cpus, ray_cluster
from ddpm.adapters.wandb_log import wandb_mirror
from ddpm.config import Config
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import InputError, Interrupted
from ddpm.progress import Tail, watch
from ddpm.request import locate
from ddpm.rundir import RunDirectory
from ddpm.train_step import exact_parts
from ddpm.trainer import total_steps
from ddpm.unet import UNet
from ddpm.unet_summary import summary
from ddpm.worker import Job, open_data, start_problems, work

GPU_KEY = "CLUSTER.GPUS_PER_WORKER"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many workers a training has and what each takes of the machine."""

    count: int
    cpus: int
    gpus: float


def run(config: Config, *, new: bool, resume: str | None, should_stop: Callable[[], bool]) -> int:
    """Train to the end and print where everything lies; 0. A finished run is not repeated."""
    console = Console()
    workers = _checked(config)
    if resume and locate(Path(resume))[1] is not None:
        raise InputError(f"--resume {resume} is a checkpoint; give the run directory it lies in")
    index = shards.prepare(config)
    data = open_data(config, index.folder)
    if resume:
        directory = RunDirectory(Path(resume))
        directory.refuse_another(config, data.sha256)
    else:
        directory = RunDirectory.find_or_name(config, data.sha256, new=new)
    if not directory.is_finished:
        job = Job(
            config=configuration.to_dict(config),
            run_dir=str(directory.path.absolute()),
            data_dir=str(index.folder.absolute()),
            threads=workers.cpus,
            command=tuple(sys.argv),
        )
        steps = total_steps(config.TRAINING, data.num_train)
        _train(job, workers, steps, console, should_stop)
    _print_summary(RunDirectory(directory.path), console)
    return 0


def _train(
    job: Job, workers: Workers, steps: int, console: Console, should_stop: Callable[[], bool]
) -> None:
    """In this process with one worker, else through Ray Train."""
    console.print(f"run directory: {job.run_dir}", soft_wrap=True)
    tail = Tail(Path(job.run_dir), "training", steps)
    if workers.count == 1:
        device = best_device() if workers.gpus else CPU
        with watch([tail], console):
            work(job, Group(device=device), mirror=wandb_mirror(None), should_stop=should_stop)
        return
    from ddpm.adapters import ray_train

    directory = RunDirectory(Path(job.run_dir))
    with (
        ray_cluster(workers.count * workers.cpus),
        watch([tail], console, should_stop=should_stop, on_stop=directory.request_stop),
    ):
        ray_train.run(
            job,
            num_workers=workers.count,
            use_gpu=workers.gpus > 0,
            cpus_per_worker=workers.cpus,
            gpus_per_worker=workers.gpus,
        )


def _checked(config: Config) -> Workers:
    """The workers of a training that can start; InputError with all that keeps it from it."""
    workers, problems = None, [*shards.source_problems(config), *start_problems(config)]
    try:
        workers = workers_for(config)
    except InputError as error:
        problems += error.problems
    if workers is None or problems:
        raise InputError(problems)
    return workers


def workers_for(config: Config) -> Workers:
    """Every GPU this machine has, else one worker on the CPU; CLUSTER keys win. InputError when it
    cannot be had.
    """
    gpus, wanted = torch.cuda.device_count(), config.CLUSTER
    elsewhere = "RAY_ADDRESS" in os.environ
    share = wanted.GPUS_PER_WORKER if wanted.GPUS_PER_WORKER is not None else float(gpus > 0)
    count = wanted.NUM_WORKERS or (max(1, int(gpus / max(1.0, share))) if share else 1)
    if share and not gpus and not elsewhere:
        raise InputError(
            f"{GPU_KEY} is {share:g} but this machine shows no GPU to torch; "
            f"set {GPU_KEY}=null to train on the CPU, or run `python -m ddpm.doctor`"
        )
    if count * share > gpus and not elsewhere:
        raise InputError(
            f"{count} worker(s) of {share:g} GPU(s) each are more than this machine's {gpus}; give "
            f"a smaller CLUSTER.NUM_WORKERS or {GPU_KEY}"
        )
    cpus = wanted.CPUS_PER_WORKER or max(1, available_cpus() // count)
    batch = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    if count > batch:
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is {batch}; "
            f"give at most {batch} workers, so that each has a sample"
        )
    training = config.TRAINING
    if training.NUMERICS == "exact" and count > (most := exact_parts(training)):
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.NUMERICS exact cuts a batch into {most} "
            f"parts; give at most {most} workers, or a smaller TRAINING.MICRO_BATCH"
        )
    return Workers(count=count, cpus=cpus, gpus=share)


def dry_run(config: Config) -> int:
    """Print what would be trained and on what; nothing is written. InputError lists all errors."""
    workers = _checked(config)
    network = UNet(**configuration.network_arguments(config))
    print(configuration.to_yaml(config))
    print(summary(network, configuration.image_shape(config)))
    device = "GPU" if workers.gpus else "CPU"
    print(
        f"would train on the {device} with {workers.count} worker(s), each with {workers.cpus} "
        f"core(s) and {workers.gpus:g} GPU; nothing was written"
    )
    return 0


def _print_summary(directory: RunDirectory, console: Console) -> None:
    facts: dict[str, Any] = directory.summary
    if not facts:
        raise Interrupted(f"{directory.path} is unfinished; run the same command again to continue")
    console.print(
        f"done: {facts['steps']} steps, {facts['images']:,} images, {facts['seconds']:.0f} s, "
        f"{facts['images_per_s']:,.0f} images/s, final loss {facts['final_loss']:.4f}"
    )
    console.print(f"results: {directory.path}", soft_wrap=True)
