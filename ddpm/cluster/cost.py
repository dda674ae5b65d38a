"""How fast a training would go on this machine: a few real steps of it on random images, timed.

The figures hold for the device and the threads they were measured with, and for nothing else.
"""

import heapq
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ddpm import config as configuration
from ddpm.cluster import status
from ddpm.cluster.slurm import Allocation, JobStates
from ddpm.config import Config
from ddpm.data import INDEX_FILE, Dataset, is_validation, open_index, open_source, packing
from ddpm.diffusion import NoiseSchedule, UNet, summary
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import DdpmError, InputError
from ddpm.metrics import (
    STEPS,
    USUAL_STEPS,
    ClassifierFeatures,
    as_real_data,
    bound_timesteps,
    evaluation,
    has_classifier,
    levels_of,
    train,
)
from ddpm.metrics import evaluation as sample_quality
from ddpm.metrics import evaluation as sample_validation
from ddpm.runs import cpu_model, duration, peak_bytes, reset_peak, storage
from ddpm.sampling import generation, num_calls, open_data
from ddpm.sweep import Budget
from ddpm.training import Stepper, steps_per_epoch, total_steps

BUDGET_S = 3.0  # of the steps of one network, once a batch is found that lets it measure some
PROBE_IMAGES = 64  # of one network call outside of training
_BYTES = 4  # of a number in fp32
_ADAM = 4  # weights, gradients and two moments


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured on a device.

    step_s: seconds of an optimizer step.  call_s: seconds of the network for one image, without
    gradients.  device: what it is.  note: what to know of the measurement; empty when it is plain.
    cores: busy meanwhile, on average.  memory_bytes: most that was held at once, of the GPU where
    there is one, else of the process.
    """

    step_s: float
    call_s: float
    device: str
    on_gpu: bool = False
    note: str = ""
    cores: float = 1.0
    memory_bytes: int = 0


def measure(config: Config, *, threads: int, uses_gpu: bool) -> Speed:
    """The speed of this configuration's training on one worker here.

    Raises InputError when the network does not fit into the memory of this machine.
    """
    device = best_device() if uses_gpu else CPU
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    reset_peak()
    wall, busy = time.perf_counter(), time.process_time()
    try:
        speed = _measure(config, threads, device)
        cores = (time.process_time() - busy) / (time.perf_counter() - wall)
        return replace(speed, cores=cores, memory_bytes=peak_bytes())
    finally:
        torch.set_num_threads(before)


def same_cost(config: Config) -> str:
    """Equal for configurations whose steps and calls take equally long."""
    training = config.TRAINING
    numbers = (
        training.HYPER_PARAMETERS.BATCH_SIZE,
        *(training.MICRO_BATCH, training.PRECISION, training.NUMERICS, training.COMPILE),
        len(training.EMA_DECAYS) + len(training.EMA_POWER),
        configuration.image_shape(config),
    )
    return str((configuration.network_arguments(config), numbers))


def _measure(config: Config, threads: int, device: torch.device) -> Speed:
    batch = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    with torch.device("meta"):
        frame = UNet(**configuration.network_arguments(config))
    cost = summary(frame, configuration.image_shape(config))
    copies = _ADAM + len(config.TRAINING.EMA_DECAYS) + len(config.TRAINING.EMA_POWER)
    fixed, one = copies * _BYTES * cost.parameters, cost.activation_bytes_per_image
    room, notes = _room(device), []
    if fixed + one > room:
        raise InputError(
            f"the network does not fit: weights, optimizer and one image take "
            f"{_gib(fixed + one)}, {_name(device, threads)} has {_gib(room)} free"
        )
    at_once = min(config.TRAINING.MICRO_BATCH or batch, batch)
    if fixed + at_once * one > room:
        notes.append(
            f"{at_once} images at once take {_gib(fixed + at_once * one)} and do not fit into the "
            f"{_gib(room)} free here; TRAINING.MICRO_BATCH cuts a batch into parts that do"
        )
    network = frame.to_empty(device=device)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.detach().zero_()  # quick, and finite; numbers do not change the time
    fits = max(1, min(batch, int((room - fixed) // one)))
    if config.TRAINING.COMPILE:
        notes.append("measured without torch.compile, which is faster on a GPU")
    line = _step_line(config, network, device, fits)
    if line.size < batch:
        notes.append(f"a step of {batch} images is taken from steps of up to {line.size}")
    calls = max(1, min(PROBE_IMAGES, fits, int(BUDGET_S / 3 / max(line.per_image_s / 3, 1e-9))))
    return Speed(
        step_s=line.at(batch),
        call_s=_call_seconds(config, network, device, calls),
        device=_name(device, threads),
        on_gpu=device.type == "cuda",
        note="; ".join(notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Seconds of a step: `seconds` for `size` images, so many more for each more image."""

    size: int
    seconds: float
    per_image_s: float

    def at(self, batch: int) -> float:
        return self.seconds + (batch - self.size) * self.per_image_s


def _step_line(config: Config, network: UNet, device: torch.device, most: int) -> _Line:
    """Measured at `most` images, or at the largest number that the budget allows."""
    started = time.perf_counter()
    one = took = min(_timed_steps(config, network, device, 1, 2))
    size, per_image = 1, one
    while size < most and time.perf_counter() - started + 5 * took < 2 * BUDGET_S:
        size = min(size * 4, most)
        took = min(_timed_steps(config, network, device, size, 1 if took > 0.5 else 2))
        # the optimizer takes as long for one image as for many
        per_image = max(took - one, 0.0) / (size - 1) or took / size
    if size == most and (steps := int(BUDGET_S / took)) > 1:
        seconds = _timed_steps(config, network, device, size, min(steps, 50) + 1)
        took = float(np.median(seconds[1:]))  # other processes disturb some of them
    return _Line(size=size, seconds=took, per_image_s=per_image)


def _timed_steps(
    config: Config, network: UNet, device: torch.device, batch: int, steps: int
) -> list[float]:
    """Seconds of each of the first `steps` steps of a training with batches of so many images."""
    micro, seconds = config.TRAINING.MICRO_BATCH, []
    hyper = replace(
        config.TRAINING.HYPER_PARAMETERS, BATCH_SIZE=batch, EPOCHS=1, STEPS_PER_EPOCH=steps
    )
    short = replace(
        config.TRAINING,
        HYPER_PARAMETERS=hyper,
        MICRO_BATCH=min(micro, batch) if micro else None,
        COMPILE=False,
    )
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    stepper = Stepper(short, network, schedule, None, None, Group(device=device), steps)
    data = _random_images(config, batch)
    started = time.perf_counter()
    for images in data.batches(stepper.share_of(step) for step in range(steps)):
        stepper.train_step(images, False)  # waits for the device
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
    return seconds


def _random_images(config: Config, batch: int) -> Dataset:
    channels, height, width = configuration.image_shape(config)
    random, count = np.random.default_rng(0), min(2 * batch, 512)
    images = random.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    labels = None if classes is None else np.arange(count) % classes
    return Dataset.from_arrays(images, labels, validation_fraction=0.0)


def _call_seconds(config: Config, network: UNet, device: torch.device, count: int) -> float:
    """Seconds of the network for one image of `count` at once."""
    network = network.eval()
    x = torch.zeros(count, *configuration.image_shape(config), device=device)
    time_, labels = x.new_full((count,), 0.5), None
    if config.TRAINING.NETWORK.NUM_CLASSES is not None:
        labels = torch.zeros(count, dtype=torch.int64, device=device)

    def call() -> None:
        with torch.no_grad():
            network(x, time_, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return _repeated(call) / count


def _repeated(call: Callable[[], None]) -> float:
    """Seconds of a call: the median of as many as a third of the budget holds."""
    call()
    seconds: list[float] = []
    while not seconds or (len(seconds) < 50 and sum(seconds) < BUDGET_S / 3):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))


def _room(device: torch.device) -> int:
    """Bytes that are free: of the GPU, else of the machine and the limit its container sets."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return psutil.virtual_memory().available


def _name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_model()}, {threads} thread(s)"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB"


# --------
# Whether a sweep has spent what TUNE.BUDGET allows it.
#
# Hours are those its trials held cores and GPUs for, busy or not, as their run directories show them:
# what a cluster would charge. Runs that other commands began count too; waiting and Ray do not.

LOOK_S = 2.0


class Meter:
    """The spending of the runs in the directories that `runs` lists, which may grow."""

    def __init__(self, budget: Budget, runs: Callable[[], Iterable[Path]]) -> None:
        self._budget, self._runs = budget, runs
        self._jobs, self._next, self._started = JobStates(), 0.0, time.monotonic()
        self._ended: dict[Path, tuple[float, float]] = {}
        self._reason: str | None = None

    def hours(self) -> tuple[float, float]:
        """Core-hours and GPU-hours so far."""
        cores = gpus = 0.0
        for path in self._runs():
            found = self._ended.get(path) or self._read(path)
            cores, gpus = cores + found[0], gpus + found[1]
        return cores, gpus

    def spent(self) -> str | None:
        """Why nothing more may run; None while something may. Looks every LOOK_S seconds."""
        if self._reason is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_S
            self._reason = self._look()
        return self._reason

    def _look(self) -> str | None:
        limits = self._budget
        taken = {"WALL_HOURS": (time.monotonic() - self._started) / 3600}
        for name, hours in taken.items():
            limit = getattr(limits, name)
            if limit is not None and hours >= limit:
                what = name.lower().replace("_", "-")
                return f"budget: {hours:.3g} of TUNE.BUDGET.{name}'s {limit:g} {what} are spent"
        return None

    def _read(self, path: Path) -> tuple[float, float]:
        if not status.is_run(path):
            return 0.0, 0.0
        found = status.read(path, self._jobs)
        hours = found.core_hours, found.gpu_hours
        if found.state == "done":
            self._ended[path] = hours
        return hours


def begun(runs: Iterable[Path]) -> int:
    """How many of these run directories a trial has begun in."""
    return sum(status.is_run(path) for path in runs)


# --------
# What the classifier of a data set takes: the first training that needs it makes it for all.
#
# Its training and its features of the training images are measured on random ones of their shape.

PROBED_STEPS = 8
CLASSIFIER_IMAGES = 256
CLASSES = 10  # of data whose labels the network does not see: they hardly cost


def seconds(config: Config, train_images: int) -> float:
    """Of one core, on this machine; 0 where no classifier is needed or one is there already.

    Packs and writes nothing.
    """
    if not is_needed(config) or _is_there(config):
        return 0.0
    channels, height, width = configuration.image_shape(config)
    classes = config.TRAINING.NETWORK.NUM_CLASSES or CLASSES
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (CLASSIFIER_IMAGES, height, width, channels), dtype=np.uint8)
    ends: list[float] = []
    network = train(
        lambda places: pixels[places],
        np.arange(CLASSIFIER_IMAGES) % classes,
        (channels, height, width),
        classes,
        on_step=lambda: ends.append(time.perf_counter()),
        steps=PROBED_STEPS,
    )
    started = time.perf_counter()
    ClassifierFeatures(network, "", None)(pixels)
    an_image = (time.perf_counter() - started) / CLASSIFIER_IMAGES
    return STEPS * float(np.median(np.diff(ends))) + train_images * an_image


def is_needed(config: Config) -> bool:
    """By the samples of evaluations, or by those of the end."""
    options = config.EVALUATION
    on_the_way = options.EVERY is not None and options.FEATURES == "classifier"
    at_the_end = config.DATASET.LABEL_KEY is not None and bool(evaluation.walks(config))
    return on_the_way or at_the_end


def _is_there(config: Config) -> bool:
    index = packing.found(config)
    return index is not None and has_classifier(
        as_real_data(config, open_data(config, index.folder))
    )


# --------
# How many workers a training or an evaluation has, and what each takes of the machine or job.

GPU_KEY = "CLUSTER.GPUS_PER_WORKER"


@dataclass(frozen=True, kw_only=True)
class Workers:
    """count: processes.  cpus: cores of each.  gpus: GPUs of each; a fraction shares one."""

    count: int
    cpus: int
    gpus: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to train on: cores by node, and GPUs on each node.

    is_job: whether it is a SLURM job's, which is held to what it was given.
    """

    name: str
    is_job: bool
    cpus: tuple[int, ...]
    gpus_per_node: int

    @property
    def num_gpus(self) -> int:
        return len(self.cpus) * self.gpus_per_node


def machine() -> Machine:
    """The SLURM job this process runs in, else this machine as far as this process may use it."""
    job = Allocation.from_environment()
    if job:
        return Machine(
            name=f"SLURM job {job.job_id}",
            is_job=True,
            cpus=job.cpus,
            gpus_per_node=job.gpus_per_node,
        )
    import torch  # seconds, which a job's check of its configuration does without

    return Machine(
        name="this machine",
        is_job=False,
        cpus=(available_cpus(),),
        gpus_per_node=torch.cuda.device_count(),
    )


def available_cpus() -> int:
    """CPU cores this process may run on (what taskset or a container gave, not the host's)."""
    return len(os.sched_getaffinity(0))


def workers_for(config: Config) -> Workers:
    """One worker for every GPU there is, else one on the CPUs of every node; CLUSTER keys win.

    InputError when that cannot be had.
    """
    there, wanted = machine(), config.CLUSTER
    elsewhere = "RAY_ADDRESS" in os.environ
    share = wanted.GPUS_PER_WORKER
    if share is None:
        share = float(there.num_gpus > 0)
    if share and not there.num_gpus and not elsewhere:
        raise InputError(_no_gpu(share, there))
    count = wanted.NUM_WORKERS or _workers_that_fit(share, there)
    if count * share > there.num_gpus and not elsewhere:
        raise InputError(
            f"{count} worker(s) of {share:g} GPU(s) each are more than the {there.num_gpus} of "
            f"{there.name}; give a smaller CLUSTER.NUM_WORKERS or {GPU_KEY}"
        )
    batch = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    if count > batch:
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is {batch}; "
            f"give at most {batch} workers, so that each has a sample"
        )
    _check_exact_parts(config, count)
    on_a_node, cpus = _cores(count, there)
    cpus = wanted.CPUS_PER_WORKER or cpus
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"{on_a_node} worker(s) of {cpus} core(s) on a node are more than the "
            f"{min(there.cpus)} core(s) a node of {there.name} has; ask for more, such as "
            f"`sbatch --cpus-per-task={on_a_node * cpus} ...`, or give a smaller "
            "CLUSTER.NUM_WORKERS or CLUSTER.CPUS_PER_WORKER"
        )
    return Workers(count=count, cpus=cpus, gpus=share)


def workers_of_evaluation(wanted: int | None, *, all_nodes: bool) -> Workers:
    """So many, or one for every GPU there is, else one on the CPUs of every node. InputError when
    that cannot be had.

    all_nodes: of the SLURM job, which Ray joins; else this one alone.
    """
    there = machine()
    if not all_nodes:
        there = replace(there, cpus=(min(there.cpus),))
    share = float(there.num_gpus > 0)
    count = wanted or _workers_that_fit(share, there)
    if share and count > there.num_gpus:
        raise InputError(
            f"--workers {count}: {there.name} has {there.num_gpus} GPU(s), and each worker takes "
            "one; give at most so many"
        )
    on_a_node, cpus = _cores(count, there)
    if there.is_job and on_a_node * cpus > min(there.cpus):
        raise InputError(
            f"--workers {count}: a node of {there.name} has {min(there.cpus)} core(s); give at "
            f"most {min(there.cpus) * len(there.cpus)}, or ask for more"
        )
    return Workers(count=count, cpus=cpus, gpus=share)


def _cores(count: int, there: Machine) -> tuple[int, int]:
    """How many workers are on a node, and the cores of each."""
    on_a_node = -(-count // len(there.cpus))
    return on_a_node, max(1, min(there.cpus) // on_a_node)


def _check_exact_parts(config: Config, count: int) -> None:
    """InputError when NUMERICS exact cuts a batch into fewer parts than there are workers."""
    if config.TRAINING.NUMERICS != "exact":
        return
    from ddpm.training import exact_parts

    if count > (most := exact_parts(config.TRAINING)):
        raise InputError(
            f"CLUSTER.NUM_WORKERS is {count} but TRAINING.NUMERICS exact cuts a batch into {most} "
            f"parts; give at most {most} workers, or a smaller TRAINING.MICRO_BATCH"
        )


def _workers_that_fit(share: float, there: Machine) -> int:
    """One a GPU (or a node, without GPUs), fewer where a worker takes several."""
    nodes = len(there.cpus)
    return nodes * max(1, int(there.gpus_per_node / max(1.0, share))) if share else nodes


def _no_gpu(share: float, there: Machine) -> str:
    if not there.is_job:
        return (
            f"{GPU_KEY} is {share:g} but this machine shows no GPU to torch; "
            f"set {GPU_KEY}=null to train on the CPU, or run `ddpm doctor`"
        )
    return (
        f"{GPU_KEY} is {share:g} but {there.name} has no GPU; ask for some, such as "
        f"`sbatch --gpus-per-node=1 ...`, or set {GPU_KEY}=null to train on CPUs"
    )


# --------
# How long trainings will take, from what a probe has measured and what their configurations count.
#
# Optimizer steps, and the passes through the network without gradients: sample grids, validation, the
# last samples. Starting (some ten seconds of imports) and writing are not counted.

UNKNOWN_IMAGES = 10_000  # of shards that nobody has indexed yet


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One training. passes: images through the network without gradients, `shared` of them by all
    workers, the others by one.
    """

    steps: int
    passes: int
    shared: int
    workers: int
    speed: Speed

    @property
    def seconds(self) -> float:
        passes = self.passes - self.shared + self.shared / self.workers
        return self.steps * self.speed.step_s + passes * self.speed.call_s

    @property
    def core_seconds(self) -> float:
        """Seconds of busy cores: others that keep the cores busy make it last, not cost, more."""
        steps = self.steps * self.workers
        return self.speed.cores * (steps * self.speed.step_s + self.passes * self.speed.call_s)

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps of {self.speed.step_s:.3g} s and {self.passes:,} images through "
            f"the network for samples and validation: {duration(self.seconds)}"
        )


def predict(config: Config, speed: Speed, workers: int = 1) -> Prediction:
    """One training by workers of that speed."""
    train, held_out = _split(config)
    passes, shared = _passes(config, train, held_out)
    return Prediction(
        steps=total_steps(config.TRAINING, train),
        passes=passes,
        shared=shared,
        workers=workers,
        speed=speed,
    )


def predict_all(configs: Sequence[Config], workers: Workers) -> list[Prediction]:
    """Each training on these workers; every network that costs something else is measured.

    A step on several is that of one worker's share; what they tell each other is left out.
    """
    speeds: dict[str, Speed] = {}
    found = []
    for config in configs:
        shared = share(config, workers.count)
        key = same_cost(shared)
        if key not in speeds:
            speeds[key] = measure(shared, threads=workers.cpus, uses_gpu=workers.gpus > 0)
        found.append(predict(config, speeds[key], workers.count))
    return found


def once_s(configs: Iterable[Config]) -> float:
    """Seconds that the first of these trainings takes for what the others then find, while they
    wait: the classifier of their data.
    """
    by_data = {
        str((one.DATASET, configuration.image_shape(one))): one for one in configs if is_needed(one)
    }
    return sum(seconds(one, _split(one)[0]) for one in by_data.values())


def mean_s(predictions: Sequence[Prediction]) -> float:
    """Seconds of a training, on average."""
    return sum(one.seconds for one in predictions) / len(predictions)


def wall_s(seconds: Iterable[float], side_by_side: int) -> float:
    """Seconds until all have ended: so many at a time, the next begun as soon as one ends."""
    ends = [0.0] * side_by_side
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def notes(predictions: Iterable[Prediction], workers: Workers) -> list[str]:
    """Where the figures come from and what they do not say, one line each."""
    speeds = list(dict.fromkeys(p.speed for p in predictions))
    devices = ", ".join(dict.fromkeys(speed.device for speed in speeds))
    lines = [f"measured just now on {devices}; another device takes another time"]
    lines += dict.fromkeys(speed.note for speed in speeds if speed.note)
    if workers.gpus and not all(speed.on_gpu for speed in speeds):
        lines.append("no GPU here to measure: on one it will be many times faster")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        lines.append(f"this machine is busy (load {load:.1f} on {cores} cores): figures too high")
    return lines


def share(config: Config, workers: int) -> Config:
    """The training as one of so many workers has it: with its part of the batch."""
    hyper = config.TRAINING.HYPER_PARAMETERS
    share = replace(hyper, BATCH_SIZE=-(-hyper.BATCH_SIZE // workers))
    return replace(config, TRAINING=replace(config.TRAINING, HYPER_PARAMETERS=share))


def _split(config: Config) -> tuple[int, int]:
    """(training images, validation images), without packing or indexing anything."""
    path = config.DATASET.PATH
    if not packing.is_shards(path):
        count = open_source(path, config.DATASET.LABEL_KEY).num_samples
    elif (Path(path) / INDEX_FILE).exists():
        count = open_index(path).num_samples
    else:
        count = UNKNOWN_IMAGES
    held_out = int(is_validation(count, config.DATASET.VALIDATION_FRACTION).sum())
    return count - held_out, held_out


def _passes(config: Config, train: int, held_out: int) -> tuple[int, int]:
    """Images that go through the network without gradients, over the whole run; and how many of
    them all workers share.
    """
    training, evaluation = config.TRAINING, config.EVALUATION
    inline, total = training.INLINE_GEN, total_steps(training, train)
    epoch = steps_per_epoch(training, train)
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    labels = generation.grid_labels(config)
    images = inline.NUMS if labels is None else len(labels)
    at_once = min(images, generation.GRID_BATCH)
    sampler = generation.grid_sampler(config, schedule)
    # the last samples, and the grids on the way
    grids = 1 + (-(-total // (inline.PERIOD * epoch)) if inline.ENABLE else 0)
    grid = -(-images // at_once) * at_once * num_calls(sampler, schedule)
    pairs = min(evaluation.NUM, held_out) * len(levels_of(schedule))
    evaluations = -(-total // (evaluation.EVERY * epoch)) if evaluation.EVERY else 0
    # at the end alone, of images that are bytes, as all but float arrays are
    walk = bound_timesteps(schedule, USUAL_STEPS)
    bound = min(evaluation.NUM, held_out) * (len(walk) - 1)
    drawn = pairs + sample_validation.passes(config, schedule)
    shared = evaluations * drawn + sample_quality.quality_passes(config, schedule)
    return grids * grid + pairs + bound + shared, shared


# --------
# What the trials of a sweep will cost, kept until it can be compared with what they did cost.
#
#     prediction.json    by trial: seconds of cores, GPUs and the wall, and memory, from a probe of a
#                        few steps (ddpm/cluster/cost.py) taken in a fresh process before the first trial;
#                        and, when the sweep has ended, the wall time it took
#
# ddpm/report/page.py compares the two.

FILE = "prediction.json"
LEAST_STEPS = 100  # of a trial: a shorter one takes less than a probe of it


def make(
    folder: Path,
    configs: Mapping[str, Config],
    workers: Workers,
    side_by_side: int,
    *,
    imports: Sequence[str] = (),
) -> None:
    """Probes each network that costs something else, and keeps the prediction of every trial.

    imports: modules that the process of a trial holds besides its training's.
    """
    shares = {name: share(one, workers.count) for name, one in configs.items()}
    probed = {same_cost(one): one for one in shares.values()}
    speeds, once = _probed(probed, workers, imports)
    trials: dict[str, dict[str, float]] = {}
    seconds = []
    for name, config in configs.items():
        speed = speeds[same_cost(shares[name])]
        found = predict(config, speed, workers.count)
        own = 0.0 if trials else once  # the first trial makes what all use
        trials[name] = {
            "seconds": found.seconds + own,
            "core_seconds": found.core_seconds + own,
            "gpu_seconds": (found.seconds + own) * workers.gpus * workers.count,
            "memory_bytes": speed.memory_bytes,
        }
        seconds.append(found.seconds)
    facts = {
        "device": next(iter(speeds.values())).device,
        "load": os.getloadavg()[0],
        "side_by_side": side_by_side,
        "wall_seconds": once + wall_s(seconds, side_by_side),
        "trials": trials,
    }
    storage.write_json(folder / FILE, facts)


def finish(folder: Path, wall_seconds: float) -> None:
    """Adds the wall time that all trials took together."""
    facts = storage.read_json(folder / FILE)
    if facts:
        storage.write_json(folder / FILE, facts | {"measured_wall_seconds": wall_seconds})


def _probed(
    configs: Mapping[str, Config], workers: Workers, imports: Sequence[str]
) -> tuple[dict[str, Speed], float]:
    """The speed of each network, and what all need once, measured by a process of its own: so its
    memory is a trial's, and this process holds no GPU.
    """
    request = {
        "configs": {key: configuration.to_dict(config) for key, config in configs.items()},
        "threads": workers.cpus,
        "uses_gpu": workers.gpus > 0,
        "imports": list(imports),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ddpm.cluster", "probe"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DdpmError(f"the probe failed: {why}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    speeds = {key: Speed(**speed) for key, speed in answer["speeds"].items()}
    return speeds, answer["once_s"]


def answer_probe() -> int:
    """Answers a request on standard input, as JSON."""
    request = json.load(sys.stdin)
    for name in request["imports"]:
        importlib.import_module(name)
    configs = {
        key: configuration.from_dict(plain, source="probe")
        for key, plain in request["configs"].items()
    }
    device = {"threads": request["threads"], "uses_gpu": request["uses_gpu"]}
    speeds = {key: asdict(measure(one, **device)) for key, one in configs.items()}
    print(json.dumps({"speeds": speeds, "once_s": once_s(configs.values())}))
    return 0
