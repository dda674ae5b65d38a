"""How long trainings will take, from what a probe has measured and what their configurations count.

Optimizer steps, and the passes through the network without gradients: sample grids, validation, the
last samples. Starting (some ten seconds of imports) and writing are not counted.
"""

import heapq
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm import classifier_cost, generate, probe, sample_quality, sample_validation, shards
from ddpm import config as configuration
from ddpm.bits_per_dim import USUAL_STEPS, bound_timesteps
from ddpm.config import Config
from ddpm.evaluate import levels_of
from ddpm.index import INDEX_FILE
from ddpm.order import is_validation
from ddpm.probe import Speed
from ddpm.progress import duration
from ddpm.schedule import NoiseSchedule
from ddpm.slots import num_calls
from ddpm.trainer import steps_per_epoch, total_steps
from ddpm.workers import Workers

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
        key = probe.same_cost(shared)
        if key not in speeds:
            speeds[key] = probe.measure(shared, threads=workers.cpus, uses_gpu=workers.gpus > 0)
        found.append(predict(config, speeds[key], workers.count))
    return found


def once_s(configs: Iterable[Config]) -> float:
    """Seconds that the first of these trainings takes for what the others then find, while they
    wait: the classifier of their data.
    """
    by_data = {
        str((one.DATASET, configuration.image_shape(one))): one
        for one in configs
        if classifier_cost.is_needed(one)
    }
    return sum(classifier_cost.seconds(one, _split(one)[0]) for one in by_data.values())


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
    if not shards.is_shards(path):
        count = shards.open_source(path, config.DATASET.LABEL_KEY).num_samples
    elif (Path(path) / INDEX_FILE).exists():
        count = shards.open_index(path).num_samples
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
    labels = generate.grid_labels(config)
    images = inline.NUMS if labels is None else len(labels)
    at_once = min(images, generate.GRID_BATCH)
    sampler = generate.grid_sampler(config, schedule)
    # the last samples, and the grids on the way
    grids = 1 + (-(-total // (inline.PERIOD * epoch)) if inline.ENABLE else 0)
    grid = -(-images // at_once) * at_once * num_calls(sampler, schedule)
    pairs = min(evaluation.NUM, held_out) * len(levels_of(schedule))
    evaluations = -(-total // (evaluation.EVERY * epoch)) if evaluation.EVERY else 0
    # at the end alone, of images that are bytes, as all but float arrays are
    walk = bound_timesteps(schedule, USUAL_STEPS)
    bound = min(evaluation.NUM, held_out) * (len(walk) - 1)
    drawn = pairs + sample_validation.passes(config, schedule)
    shared = evaluations * drawn + sample_quality.passes(config, schedule)
    return grids * grid + pairs + bound + shared, shared
