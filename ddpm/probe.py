"""How fast a training would go on this machine: a few real steps of it on random images, timed.

The figures hold for the device and the threads they were measured with, and for nothing else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from ddpm import config as configuration
from ddpm import memory
from ddpm.config import Config
from ddpm.dataset import Dataset
from ddpm.distributed import CPU, Group, best_device
from ddpm.errors import InputError
from ddpm.provenance import cpu_model
from ddpm.schedule import NoiseSchedule
from ddpm.train_step import Stepper
from ddpm.unet import UNet
from ddpm.unet_summary import summary

BUDGET_S = 3.0  # of the steps of one network, once a batch is found that lets it measure some
IMAGES = 64  # of one network call outside of training
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
    memory.reset_peak()
    wall, busy = time.perf_counter(), time.process_time()
    try:
        speed = _measure(config, threads, device)
        cores = (time.process_time() - busy) / (time.perf_counter() - wall)
        return replace(speed, cores=cores, memory_bytes=memory.peak_bytes())
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
    calls = max(1, min(IMAGES, fits, int(BUDGET_S / 3 / max(line.per_image_s / 3, 1e-9))))
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
