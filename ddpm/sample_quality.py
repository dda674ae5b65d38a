"""What the samples of a finished network are worth and cost, over numbers of steps and eta.

For every EVALUATION.SAMPLING_STEPS and SAMPLING_ETAS the same SAMPLING_NUM images are drawn (DDIM,
x0 clipped, EVALUATION.SEED, classes in turn, batches of one size, averaged weights) and compared
with the training images: FID extrapolated to infinitely many samples, KID, class accuracy.

With SAMPLING_LOGSNR the walks visit the same log SNRs whatever noise schedule the network was
trained with, as in Hang et al. 2024, section 4: what is compared is the network, not the spacing
that its schedule happens to have. Schedules that do not reach them are left out, with the reason.

All workers draw, rank 0 measures. Every point is kept as soon as it is measured; a run that is
continued goes on with the next.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm import config as configuration
from ddpm import spacing
from ddpm.config import Config
from ddpm.cost import gpu_share
from ddpm.dataset import Dataset
from ddpm.distributed import Group
from ddpm.errors import Interrupted, NonFiniteError
from ddpm.loaded import LoadedModel, load_network
from ddpm.method import Method
from ddpm.quality_file import Quality
from ddpm.quality_keeper import Drawn, Keeper, Walk
from ddpm.schedule import NoiseSchedule
from ddpm.slots import Sampler, draw_batch

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class WalkSampler(Sampler):
    """A sampler between two log SNRs, or over the schedule's own timesteps where there are none."""

    between: tuple[float, float] | None = None

    @property
    def method(self) -> Method:
        return replace(super().method, between=self.between)


def walks(config: Config) -> list[Walk]:
    """What is asked for: fewest steps first, within them the etas as they are given."""
    options = config.EVALUATION
    return [
        Walk(num_steps=num_steps, eta=eta)
        for num_steps, eta in product(sorted(options.SAMPLING_STEPS), options.SAMPLING_ETAS)
    ]


def sampler_of(walk: Walk, config: Config) -> WalkSampler:
    """How the images of a walk are drawn."""
    between = config.EVALUATION.SAMPLING_LOGSNR
    return WalkSampler(
        pred_type=config.TRAINING.PRED_TYPE,
        steps={"num_steps": walk.num_steps},
        ddim_eta=walk.eta,
        spacing="trailing" if between is None else "logsnr",
        between=between,
        clip_denoise=True,
        seed=config.EVALUATION.SEED,
    )


def why_not(walk: Walk, config: Config, schedule: NoiseSchedule) -> str | None:
    """Why a schedule cannot be walked so; None where it can."""
    last = schedule.num_timesteps
    if walk.num_steps > last:
        return f"{walk.num_steps} steps are more than the {last} timesteps it was trained with"
    sampler = sampler_of(walk, config)
    try:
        spacing.levels(
            schedule, spacing=sampler.spacing, between=sampler.between, num_steps=walk.num_steps
        )
    except ValueError as reason:
        return str(reason)
    return None


def measure_samples(
    run: Path,
    config: Config,
    data: Dataset,
    group: Group,
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> Quality | None:
    """The quality of a run's samples, written into its directory; None where nothing is asked for.

    Called by all workers together, once the last checkpoint is there; those but rank 0 get None.
    Raises Interrupted when `should_stop()` says so on rank 0.
    """
    if not walks(config):
        return None
    group.wait()  # for rank 0 to have written the checkpoint that all read
    model = load_network(run, device=group.device)
    asked, labels = walks(config), labels_of(config)
    keeper = Keeper.open(run, model, config, data, labels) if group.is_main else None
    draw = _Draw(model, config, group, labels, should_stop)
    for walk in asked[group.agree(keeper.done if keeper else 0) :]:
        reason, drawn = why_not(walk, config, model.schedule), None
        if reason is None:
            drawn, reason = draw(walk), "the images that the network draws are not finite"
        if keeper is None:
            continue
        if drawn is None:
            keeper.leave_out(walk, reason)
        else:
            keeper.add(walk, drawn)
    return keeper.quality if keeper else None


class _Draw:
    """Draws the images of a walk, by all workers."""

    def __init__(
        self,
        model: LoadedModel,
        config: Config,
        group: Group,
        labels: NDArray[np.int64] | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._model, self._config, self._group = model, config, group
        self._labels, self._should_stop = labels, should_stop

    def __call__(self, walk: Walk) -> Drawn | None:
        """None where an image is not finite."""
        group, count = self._group, self._config.EVALUATION.SAMPLING_NUM
        channels, height, width = configuration.image_shape(self._config)
        batches, sampler = -(-count // BATCH), sampler_of(walk, self._config)
        images = torch.zeros(batches * BATCH, height, width, channels, dtype=torch.uint8)
        wall, cpu, is_finite = time.perf_counter(), time.process_time(), True
        for batch in range(group.rank, -(-batches // group.size) * group.size, group.size):
            if group.any(group.is_main and self._should_stop()):
                raise Interrupted(
                    f"stopped at {walk.num_steps} steps with eta {walk.eta:g} of the samples that "
                    "are measured at the end; run the same command again to continue"
                )
            if batch < batches and is_finite:
                try:
                    images[batch * BATCH : (batch + 1) * BATCH] = self._batch(batch, sampler)
                except NonFiniteError:
                    is_finite = False
        if group.any(not is_finite):
            return None
        found = group.sum_(images.to(group.device)).cpu()  # each is drawn by one of them
        if group.device.type == "cuda":
            seconds = (time.perf_counter() - wall) * gpu_share(self._config)
        else:
            seconds = time.process_time() - cpu
        total = group.sum_(torch.tensor(seconds, dtype=torch.float64, device=group.device))
        return Drawn(images=found[:count].numpy(), seconds=float(total))

    def _batch(self, batch: int, sampler: Sampler) -> torch.Tensor:
        ids = torch.arange(batch * BATCH, (batch + 1) * BATCH, device=self._group.device)
        wanted = None
        if self._labels is not None:
            wanted = torch.from_numpy(self._labels[ids.cpu() % len(self._labels)]).to(ids.device)
        shape = configuration.image_shape(self._config)
        model = self._model
        pixels = draw_batch(model.network, model.schedule, ids, shape, sampler, labels=wanted)
        return torch.from_numpy(pixels)


def labels_of(config: Config) -> NDArray[np.int64] | None:
    """The class of each image, classes in turn; None without any."""
    classes = config.TRAINING.NETWORK.NUM_CLASSES
    return None if classes is None else np.arange(config.EVALUATION.SAMPLING_NUM) % classes


def passes(config: Config, schedule: NoiseSchedule) -> int:
    """Images that go through the network to draw all that is asked for."""
    possible = [walk for walk in walks(config) if why_not(walk, config, schedule) is None]
    drawn = -(-config.EVALUATION.SAMPLING_NUM // BATCH) * BATCH
    return drawn * sum(walk.num_steps for walk in possible)
