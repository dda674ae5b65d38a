"""Cost of trainings before they begin: a probe times a few steps, a prediction multiplies them out.

    Speed        seconds of a step and of a network call, of real steps on random images
    Prediction   steps and passes of one training, as its configuration has them, times a Speed
    Forecast     the predictions of a whole sweep, kept in prediction.json for its report, which
                 compares them with what it took

Figures hold for the device and the threads they were measured with, and for nothing else. Starting
(some ten seconds of imports) and writing are not counted.
"""

import heapq
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ddpm import config as configuration
from ddpm.cluster.workers import Workers
from ddpm.config import Config
from ddpm.data import (
    INDEX_FILE,
    Dataset,
    is_validation,
    open_data,
    open_index,
    open_source,
    preparing,
)
from ddpm.diffusion import NetworkSummary, NoiseSchedule, UNet, summarize_network
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import DdpmError, InputError
from ddpm.metrics import (
    BOUND_STEPS,
    CLASSIFIER_STEPS,
    ClassifierFeatures,
    as_real_data,
    bound_timesteps,
    has_classifier,
    logsnr_levels,
    passes_at_end,
    passes_in_training,
    sampling_walks,
    train_classifier,
)
from ddpm.report import PREDICTION_FILE
from ddpm.runs import cpu_model, duration, peak_bytes, reset_peak, storage
from ddpm.sampling import grids, num_calls
from ddpm.training import Stepper, steps_per_epoch, total_steps

LIMIT_S = 10.0  # of a dry run's probes together: what is left is estimated by its arithmetic
BUDGET_S = 3.0  # of the steps of one network, once a batch is found that lets it measure some
PROBE_IMAGES = 64  # of one network call outside of training
UNKNOWN_IMAGES = 10_000  # of shards that nobody has indexed yet
PROBED_STEPS, CLASSIFIER_IMAGES = 8, 256
CLASSES = 10  # of data whose labels the network does not see: they hardly cost
LEAST_STEPS = 100  # of a trial: a shorter one takes less than a probe of it
_BYTES = 4  # of a number in fp32
_ADAM = 4  # weights, gradients and two moments


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured speed of a network on a device.

    step_s: seconds of an optimizer step.  call_s: seconds of the network for one image, without
    gradients.  note: caveats; empty when there are none.  cores: busy meanwhile, on average.
    memory_bytes: peak, of the GPU where there is one, else of the process.  is_estimated: by
    arithmetic, with no step of this network taken.
    """

    step_s: float
    call_s: float
    device: str
    on_gpu: bool = False
    note: str = ""
    cores: float = 1.0
    memory_bytes: int = 0
    is_estimated: bool = False


def measure(config: Config, *, threads: int, uses_gpu: bool, limit_s: float = math.inf) -> Speed:
    """The speed of this configuration's training on one worker here.

    limit_s: where steps would take longer, on a CPU, they are estimated.

    Raises InputError when the network does not fit into the memory of this machine.
    """
    device = best_device() if uses_gpu else CPU
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    reset_peak()
    wall, busy = time.perf_counter(), time.process_time()
    try:
        speed = _measure(config, threads, device, limit_s)
        cores = (time.process_time() - busy) / (time.perf_counter() - wall)
        if speed.is_estimated:
            return replace(speed, cores=threads)
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


def network_summary(config: Config) -> NetworkSummary:
    """Parameters, arithmetic and activations of the configuration's network, which is not made."""
    arguments = configuration.network_arguments(config)
    return _summary(tuple(arguments.items()), configuration.image_shape(config))


@cache
def _summary(arguments: tuple[tuple[str, Any], ...], shape: tuple[int, int, int]) -> NetworkSummary:
    with torch.device("meta"):
        return summarize_network(UNet(**dict(arguments)), shape)


def _step_flops(config: Config) -> float:
    """FLOPs of an optimizer step: backward takes twice what forward does (diffusion/summary.py)."""
    again = config.TRAINING.NETWORK.CHECKPOINT_ACTIVATIONS
    images = config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    return float((4 if again else 3) * images * network_summary(config).flops_per_image)


def _convolution_flops_per_s(channels: int) -> float:
    """FLOPs a second of a 3x3 convolution of so many channels on this CPU."""
    x, weight = torch.ones(1, channels, 32, 32), torch.ones(channels, channels, 3, 3)
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) < 0.2:
        started = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        seconds.append(time.perf_counter() - started)
    return 2 * 9 * channels**2 * 32**2 / float(np.median(seconds))


def _measure(config: Config, threads: int, device: torch.device, limit_s: float) -> Speed:
    training, batch = config.TRAINING, config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    sizes = network_summary(config)
    copies = _ADAM + len(training.EMA_DECAYS) + len(training.EMA_POWER)
    fixed, one = copies * _BYTES * sizes.parameters, sizes.activation_bytes_per_image
    room, name, notes = _free_bytes(device), _name(device, threads), []
    if fixed + one > room:
        raise InputError(
            f"the network does not fit: weights, optimizer and one image take "
            f"{_gib(fixed + one)}, {name} has {_gib(room)} free"
        )
    at_once = min(training.MICRO_BATCH or batch, batch)
    if fixed + at_once * one > room:
        notes.append(
            f"{at_once} images at once take {_gib(fixed + at_once * one)} and do not fit into the "
            f"{_gib(room)} free here; TRAINING.MICRO_BATCH cuts a batch into parts that do"
        )
    if device == CPU and limit_s < math.inf:
        per_s = _convolution_flops_per_s(training.NETWORK.FIRST_CHANNEL)
        # two steps of one image, and the same again for the calls
        if 4 * _step_flops(config) / batch / per_s > limit_s:
            notes.append(
                f"estimated, for a step of it takes too long to measure: {_step_flops(config):.3g} "
                f"FLOPs a step at the {per_s / 1e9:.3g} GFLOP/s of a convolution here"
            )
            return Speed(
                step_s=_step_flops(config) / per_s,
                call_s=sizes.flops_per_image / per_s,
                device=name,
                note="; ".join(notes),
                memory_bytes=fixed + at_once * one,
                is_estimated=True,
            )
    with torch.device("meta"):
        frame = UNet(**configuration.network_arguments(config))
    network = frame.to_empty(device=device)
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.detach().zero_()  # quick, and finite; numbers do not change the time
    fits = max(1, min(batch, int((room - fixed) // one)))
    if training.COMPILE:
        notes.append("measured without torch.compile, which is faster on a GPU")
    size, seconds, per_image = _step_seconds(config, network, device, fits)
    if size < batch:
        if device == CPU:
            # threads that wait for a core make a step slow, whatever the number of its images
            per_s = _convolution_flops_per_s(training.NETWORK.FIRST_CHANNEL)
            per_image = min(per_image, _step_flops(config) / batch / per_s)
        notes.append(f"a step of {batch} images is taken from steps of up to {size}")
    calls = max(1, min(PROBE_IMAGES, fits, int(BUDGET_S / 3 / max(per_image / 3, 1e-9))))
    return Speed(
        step_s=seconds + (batch - size) * per_image,
        call_s=_call_seconds(config, network, device, calls),
        device=name,
        on_gpu=device.type == "cuda",
        note="; ".join(notes),
    )


def _step_seconds(
    config: Config, network: UNet, device: torch.device, most: int
) -> tuple[int, float, float]:
    """Images of the largest step that the budget allows (`most` at most), its seconds, and those of
    each further image.
    """
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
    return size, took, per_image


def _timed_steps(
    config: Config, network: UNet, device: torch.device, batch: int, steps: int
) -> list[float]:
    """Seconds of each of the first `steps` steps of a training with batches of so many images."""
    micro = config.TRAINING.MICRO_BATCH
    hyper = replace(
        config.TRAINING.HYPER_PARAMETERS, BATCH_SIZE=batch, EPOCHS=1, STEPS_PER_EPOCH=steps
    )
    short = replace(
        config.TRAINING,
        HYPER_PARAMETERS=hyper,
        MICRO_BATCH=min(micro, batch) if micro else None,
        COMPILE=False,
    )
    arguments = configuration.schedule_arguments(config)
    schedule = NoiseSchedule(**arguments, sigma_data=1.0)  # its value takes no time
    stepper = Stepper(short, network, schedule, None, None, Group(device=device), steps)
    data, seconds = _random_images(config, batch), []
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
    """Seconds of the network for one image of `count` at once: the median of as many calls as a
    third of the budget allows.
    """
    network = network.eval()
    x = torch.zeros(count, *configuration.image_shape(config), device=device)
    time_, labels = x.new_full((count,), 0.5), None
    if config.TRAINING.NETWORK.NUM_CLASSES is not None:
        labels = torch.zeros(count, dtype=torch.int64, device=device)
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 51 and sum(seconds[1:]) < BUDGET_S / 3):
        started = time.perf_counter()
        with torch.no_grad():
            network(x, time_, labels)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:])) / count  # the first one warms up


def _free_bytes(device: torch.device) -> int:
    """Of the GPU, else of the machine."""
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


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Cost of one training.

    passes: images through the network without gradients (sample grids, validation, the last
    samples), `shared` of them by all workers, the others by one.
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
    train_images, held_out = _split(config)
    passes, shared = _passes(config, train_images, held_out)
    return Prediction(
        steps=total_steps(config.TRAINING, train_images),
        passes=passes,
        shared=shared,
        workers=workers,
        speed=speed,
    )


def predict_all(
    configs: Sequence[Config], workers: Workers, limit_s: float = math.inf
) -> list[Prediction]:
    """Each training on these workers; every network that costs something else is measured, until
    limit_s are over: from then on a network is estimated by its FLOPs beside the first's.

    A step on several is that of one worker's share; communication is left out.
    """
    shares = [part_of_worker(config, workers.count) for config in configs]
    different = {same_cost(one): one for one in shares}
    speeds: dict[str, Speed] = {}
    started = time.perf_counter()
    for key, one in different.items():
        left = limit_s - (time.perf_counter() - started)
        if left < BUDGET_S and speeds:
            first = next(iter(speeds))
            speeds[key] = _scaled(speeds[first], different[first], one)
        else:
            speeds[key] = measure(
                one, threads=workers.cpus, uses_gpu=workers.gpus > 0, limit_s=left
            )
    return [
        predict(config, speeds[same_cost(one)], workers.count)
        for config, one in zip(configs, shares, strict=True)
    ]


def _scaled(speed: Speed, of: Config, to: Config) -> Speed:
    """The speed of another network, by its FLOPs beside those of a measured one."""
    steps = _step_flops(to) / _step_flops(of)
    calls = network_summary(to).flops_per_image / network_summary(of).flops_per_image
    return replace(
        speed,
        step_s=speed.step_s * steps,
        call_s=speed.call_s * calls,
        note="networks beyond the first ones estimated by their FLOPs",
        is_estimated=True,
    )


def part_of_worker(config: Config, workers: int) -> Config:
    """The training as one of so many workers has it: with its part of the batch."""
    hyper = config.TRAINING.HYPER_PARAMETERS
    part = replace(hyper, BATCH_SIZE=-(-hyper.BATCH_SIZE // workers))
    return replace(config, TRAINING=replace(config.TRAINING, HYPER_PARAMETERS=part))


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
    """Origin and limits of the figures, one line each."""
    speeds = list(dict.fromkeys(p.speed for p in predictions))
    devices = ", ".join(dict.fromkeys(speed.device for speed in speeds))
    is_measured = not all(speed.is_estimated for speed in speeds)
    how = "measured just now on" if is_measured else "for"
    lines = [f"{how} {devices}; another device takes another time"]
    lines += dict.fromkeys(speed.note for speed in speeds if speed.note)
    if workers.gpus and not all(speed.on_gpu for speed in speeds):
        lines.append("no GPU here to measure: on one it will be many times faster")
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        lines.append(f"this machine is busy (load {load:.1f} on {cores} cores): figures too high")
    return lines


def _split(config: Config) -> tuple[int, int]:
    """(training images, validation images), without packing or indexing anything."""
    path = config.DATASET.PATH
    if not preparing.is_shards(path):
        source = open_source(path, config.DATASET.LABEL_KEY)
        count = source.num_samples
        if source.split:
            (_, train), (_, held_out) = source.split
            return train, held_out
    elif (Path(path) / INDEX_FILE).exists():
        index = open_index(path)
        count = index.num_samples
        if index.held_out is not None:
            held_out = int(index.held_out.sum())
            return count - held_out, held_out
    else:
        count = UNKNOWN_IMAGES
    held_out = int(is_validation(count, config.DATASET.VALIDATION_FRACTION).sum())
    return count - held_out, held_out


def _passes(config: Config, train_images: int, held_out: int) -> tuple[int, int]:
    """Images through the network without gradients, over the whole run; and how many of them all
    workers share.
    """
    training, options = config.TRAINING, config.EVALUATION
    inline, total = training.INLINE_GEN, total_steps(training, train_images)
    epoch = steps_per_epoch(training, train_images)
    schedule = NoiseSchedule(**configuration.schedule_arguments(config))
    labels = grids.grid_labels(config)
    images = inline.NUMS if labels is None else len(labels)
    at_once = min(images, grids.GRID_BATCH)
    sampler = grids.grid_sampler(config, schedule)
    # the last samples, and the grids on the way
    num_grids = 1 + (-(-total // (inline.PERIOD * epoch)) if inline.ENABLE else 0)
    grid = -(-images // at_once) * at_once * num_calls(sampler, schedule)
    pairs = min(options.NUM, held_out) * len(logsnr_levels(schedule))
    evaluations = -(-total // (options.EVERY * epoch)) if options.EVERY else 0
    # at the end alone, of images that are bytes, as all but float arrays are
    walk = bound_timesteps(schedule, BOUND_STEPS)
    bound = min(options.NUM, held_out) * (len(walk) - 1)
    drawn = pairs + passes_in_training(config, schedule)
    shared = evaluations * drawn + passes_at_end(config, schedule)
    return num_grids * grid + pairs + bound + shared, shared


def classifier_s(configs: Iterable[Config]) -> float:
    """Seconds of one core, here, that the first of these trainings takes for the classifier of
    their data, while the others wait; 0 where none is needed or it is there already.

    Its training and its features of the training images are timed on random images. Packs and
    writes nothing.
    """
    different = {str((one.DATASET, configuration.image_shape(one))): one for one in configs}
    return sum(_classifier_s(one) for one in different.values() if _lacks_classifier(one))


def _lacks_classifier(config: Config) -> bool:
    """True where evaluations, or the samples at the end, need a classifier that is not kept."""
    options = config.EVALUATION
    on_the_way = options.EVERY is not None and options.FEATURES == "classifier"
    at_the_end = config.DATASET.LABEL_KEY is not None and bool(sampling_walks(config))
    if not on_the_way and not at_the_end:
        return False
    index = preparing.found(config)
    return index is None or not has_classifier(
        as_real_data(config, open_data(config, index.folder))
    )


def _classifier_s(config: Config) -> float:
    channels, height, width = configuration.image_shape(config)
    classes = config.TRAINING.NETWORK.NUM_CLASSES or CLASSES
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (CLASSIFIER_IMAGES, height, width, channels), dtype=np.uint8)
    ends: list[float] = []
    network = train_classifier(
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
    return CLASSIFIER_STEPS * float(np.median(np.diff(ends))) + _split(config)[0] * an_image


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predicted cost of several trainings.

    once_s: seconds that the first takes for a classifier of the data, for which the others wait.
    """

    predictions: tuple[Prediction, ...]
    once_s: float

    def wall_s(self, side_by_side: int) -> float:
        """Seconds until all have ended."""
        return self.once_s + wall_s((one.seconds for one in self.predictions), side_by_side)


def forecast(configs: Sequence[Config], workers: Workers, limit_s: float = math.inf) -> Forecast:
    """As a probe of this process sees it. InputError where a network does not fit."""
    predictions = tuple(predict_all(configs, workers, limit_s))
    return Forecast(predictions=predictions, once_s=classifier_s(configs))


def keep_forecast(
    folder: Path,
    configs: Mapping[str, Config],
    workers: Workers,
    side_by_side: int,
    *,
    imports: Sequence[str] = (),
) -> None:
    """Keep the forecast of every trial in prediction.json.

    By trial the seconds of cores, GPUs and the wall, and memory, which ddpm/report compares with
    what they came to.  configs: by trial id.  imports: modules that the process of a trial has
    loaded besides its training's.
    """
    found = _forecast_apart(list(configs.values()), workers, imports)
    trials: dict[str, dict[str, float]] = {}
    for name, one in zip(configs, found.predictions, strict=True):
        own = 0.0 if trials else found.once_s
        trials[name] = {
            "seconds": one.seconds + own,
            "core_seconds": one.core_seconds + own,
            "gpu_seconds": (one.seconds + own) * workers.gpus * workers.count,
            "memory_bytes": one.speed.memory_bytes,
        }
    facts = {
        "device": found.predictions[0].speed.device,
        "load": os.getloadavg()[0],
        "side_by_side": side_by_side,
        "wall_seconds": found.wall_s(side_by_side),
        "trials": trials,
    }
    storage.write_json(folder / PREDICTION_FILE, facts)


def add_wall_seconds(folder: Path, wall_seconds: float) -> None:
    """Add the wall time that all trials took together."""
    path = folder / PREDICTION_FILE
    if facts := storage.read_json(path):
        storage.write_json(path, facts | {"measured_wall_seconds": wall_seconds})


def _forecast_apart(
    configs: Sequence[Config], workers: Workers, imports: Sequence[str]
) -> Forecast:
    """forecast() by `python -m ddpm.cluster probe`: so the memory measured is a trial's, and this
    process takes no GPU.
    """
    request = {
        "configs": [configuration.to_dict(config) for config in configs],
        "workers": asdict(workers),
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
    predictions = (
        Prediction(**one | {"speed": Speed(**one["speed"])}) for one in answer["predictions"]
    )
    return Forecast(predictions=tuple(predictions), once_s=answer["once_s"])


def answer_probe() -> int:
    """The other end of _forecast_apart(): a request on standard input, the answer as JSON."""
    request = json.load(sys.stdin)
    for name in request["imports"]:
        importlib.import_module(name)
    configs = [configuration.from_dict(plain, source="probe") for plain in request["configs"]]
    print(json.dumps(asdict(forecast(configs, Workers(**request["workers"])))))
    return 0
