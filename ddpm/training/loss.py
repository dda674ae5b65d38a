"""The loss of a training step: draws keyed by position, one network call, losses per sample.

x_t = alpha x0 + sigma noise; the network's prediction is carried into LOSS_SPACE by an exact
conversion and compared there. The conversion multiplies an error by x0_gain(PRED_TYPE) /
x0_gain(LOSS_SPACE), by 1 / sigma from image to velocity; LOSS_FLOOR bounds that by 1 / LOSS_FLOOR,
as Li & He 2025 keep the denominator of theirs above 0.05.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddpm.config import Training
from ddpm.diffusion import (
    AdaptiveDensity,
    DropoutKey,
    LogSnrDensity,
    NoiseSchedule,
    Stream,
    convert_prediction,
    diffuse,
    elementwise_loss,
    loss_weight,
    network_input,
    per_sample,
    philox,
    stratified_timesteps,
    target_for,
    uniform_timesteps,
    x0_gain,
)

if TYPE_CHECKING:
    from ddpm.data import Batch

# (prediction, target, logsnr), the first two (N, C, H, W) in LOSS_SPACE, logsnr (N,) -> loss (N,)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

LOGSNR_EDGES = (-6.0, -3.0, 0.0, 3.0, 6.0)
SPACE_SUMS = {"n_loss": "noise", "i_loss": "image", "v_loss": "velocity"}  # v3's three losses
NUM_BINS = len(LOGSNR_EDGES) + 1
NUM_SUMS = 2 + len(SPACE_SUMS) + 2 * NUM_BINS


def bin_names() -> list[str]:
    """The names of the log-SNR bins in metrics: loss/logsnr_-inf_-6, loss/logsnr_-6_-3, ..."""
    edges = ["-inf", *(f"{edge:g}" for edge in LOGSNR_EDGES), "inf"]
    return [f"loss/logsnr_{low}_{high}" for low, high in zip(edges, edges[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """The draws of a batch: timesteps t (N,), noise (N, C, H, W), labels after dropping.

    t: of the schedule, or the level of a density.  weight: of each sample's loss, float64 (N,),
    where t is drawn by an adaptive density, or losses are WEIGHTED_AS by another; None is 1.
    """

    t: Tensor
    noise: Tensor
    labels: Tensor | None
    dropout_key: DropoutKey | None
    weight: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class SampleLosses:
    """Losses (N,) of a batch: the one trained, the plain ones in three spaces; and its log-SNR.

    weight: of the draw, as Randomness has it; no loss here contains it.
    """

    loss: Tensor
    by_space: dict[str, Tensor]
    logsnr: Tensor
    weight: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum over the batch whose gradient is followed: of losses times the draws' weights."""
        return self._weighted(self.loss).sum()

    def _weighted(self, loss: Tensor) -> Tensor:
        return loss if self.weight is None else loss * self.weight.to(loss.dtype)

    def sums(self) -> Tensor:
        """The NUM_SUMS numbers a step reports, detached: loss, non-finite losses, spaces, bins.

        All but the bins estimate means over the schedule, however timesteps are drawn; of losses
        that are WEIGHTED_AS a density, over that.
        """
        loss = self.loss.detach().float()
        bins = self._bins()
        spaces = [self._weighted(self.by_space[space]).sum() for space in SPACE_SUMS.values()]
        bad = (~torch.isfinite(loss)).sum().to(loss.dtype)
        in_bins = [torch.nan_to_num(loss) @ bins, bins.sum(0)]
        return torch.cat([torch.stack([self._weighted(loss).sum(), bad, *spaces]), *in_bins])

    def squares(self) -> Tensor:
        """Sum of squared losses in each bin, detached (NUM_BINS,), for an adaptive density."""
        loss = self.loss.detach().float()
        return torch.nan_to_num(loss.square()) @ self._bins()

    def _bins(self) -> Tensor:
        """Bin of each sample, one-hot (N, NUM_BINS) float32."""
        # no tensor of the edges: a copy to a GPU waits for it
        above = torch.stack([self.logsnr > edge for edge in LOGSNR_EDGES]).sum(0)
        return nn.functional.one_hot(above, NUM_BINS).float()


def metrics_from(sums: list[float], samples: int) -> dict[str, float]:
    """Means over `samples` samples from added-up SampleLosses.sums(); empty bins are left out."""
    metrics = {"loss": sums[0] / samples}
    metrics |= {name: sums[2 + k] / samples for k, name in enumerate(SPACE_SUMS)}
    first = 2 + len(SPACE_SUMS)
    for k, name in enumerate(bin_names()):
        count = sums[first + NUM_BINS + k]
        if count:
            metrics[name] = sums[first + k] / count
    return metrics


def standard_loss(training: Training, sigma_data: float | None = None) -> Loss:
    """LOSS_FN times the weight of LOSS_WEIGHTING in LOSS_SPACE.  sigma_data: of edm."""
    space = training.LOSS_SPACE or training.PRED_TYPE

    def loss(prediction: Tensor, target: Tensor, logsnr: Tensor) -> Tensor:
        weight = loss_weight(
            logsnr,
            space,
            training.LOSS_WEIGHTING,
            gamma=training.MIN_SNR_GAMMA,
            sigma_data=sigma_data,
        )
        return weight * elementwise_loss(prediction, target, training.LOSS_FN)

    return loss


def levels_trained(training: Training, schedule: NoiseSchedule) -> NoiseSchedule | LogSnrDensity:
    """The noise levels t = 1, 2, ... of a training: timesteps, or equally likely of a density.

    Raises ValueError for a density whose levels the network would see as times of the schedule.
    """
    name = training.LOGSNR_DENSITY
    if training.draws_timesteps:
        return schedule
    if schedule.time_input in ("time", "timestep"):
        raise ValueError(
            f"the density is {name} but the schedule's time_input is {schedule.time_input}; "
            "give NoiseSchedule time_input='logsnr'"
        )
    return _density(name, training.DENSITY_PARAMETERS)


_density = lru_cache(maxsize=16)(LogSnrDensity)  # a step asks for it twice


@lru_cache(maxsize=16)
def _weights_on(device: torch.device, levels: NoiseSchedule | LogSnrDensity, name: str) -> Tensor:
    """The weight of each level, computed on the CPU and copied once."""
    logsnr = levels.logsnr_at(torch.arange(1, levels.num_timesteps + 1))
    return _density(name).weights_of(logsnr).to(device)


def draw(
    training: Training,
    network: nn.Module,
    schedule: NoiseSchedule,
    batch: "Batch",
    step: int,
    density: AdaptiveDensity | None = None,
) -> Randomness:
    """The draws of the samples of this batch: functions of (SEED, position) alone.

    density: of the timesteps where LOGSNR_DENSITY is adaptive, as the steps before left it.
    """
    seed, positions = training.SEED, positions_of(batch)
    count = levels_trained(training, schedule).num_timesteps
    count = count if density is None else density.num_places
    if training.STRATIFIED_TIME:
        size = training.HYPER_PARAMETERS.BATCH_SIZE
        t = stratified_timesteps(seed, step, positions - step * size, size, count)
    else:
        t = uniform_timesteps(seed, positions, count)
    t, weight = (t, None) if density is None else density.timesteps(t)
    if training.WEIGHTED_AS is not None:
        levels = levels_trained(training, schedule)
        weight = _weights_on(t.device, levels, training.WEIGHTED_AS)[t - 1]
    drops = getattr(network, "dropout", 0.0) > 0
    return Randomness(
        t=t,
        noise=philox.normal(seed, Stream.NOISE, positions, tuple(batch.images.shape[1:])),
        labels=_labels(training, network, batch),
        dropout_key=DropoutKey(seed, positions) if drops else None,
        weight=weight,
    )


def positions_of(batch: "Batch") -> Tensor:
    """Positions of the batch in the endless order; ValueError for one read outside of it."""
    if batch.positions is None:
        raise ValueError("a batch read without positions has no draws; read it by its positions")
    return batch.positions


def _labels(training: Training, network: nn.Module, batch: "Batch") -> Tensor | None:
    """Labels, each replaced by the null class with probability LABEL_DROP.

    None for unconditional networks.
    """
    null = getattr(network, "null_label", None)
    if null is None or batch.labels is None:
        return None
    draws = philox.uniform(training.SEED, Stream.LABEL_DROP, positions_of(batch))
    return torch.where(draws < training.LABEL_DROP, null, batch.labels)


def sample_losses(
    training: Training,
    network: Callable[..., Tensor],
    schedule: NoiseSchedule,
    batch: "Batch",
    draws: Randomness,
    loss: Loss,
    autocast: AbstractContextManager[object] | None = None,
) -> SampleLosses:
    """One network call and its losses. Only the call itself runs under `autocast`."""
    levels = levels_trained(training, schedule)
    alpha, sigma = levels.alpha_sigma_at(draws.t)
    space, kind = training.LOSS_SPACE or training.PRED_TYPE, training.PRED_TYPE
    of_data = schedule.sigma_data
    x0, logsnr = batch.images, levels.logsnr_at(draws.t)
    x_t = diffuse(x0, draws.noise, alpha, sigma)
    time = schedule.network_time(draws.t.double() / levels.num_timesteps, logsnr)
    extra = {} if draws.dropout_key is None else {"dropout_key": draws.dropout_key}
    given = network_input(x_t, alpha, sigma, kind, of_data)
    with autocast or nullcontext():
        pred = network(given, time, draws.labels, **extra)
    pred = pred.float()

    def in_space(space: str) -> tuple[Tensor, Tensor]:
        target = target_for(space, x0, draws.noise, alpha, sigma, of_data)
        return convert_prediction(pred, x_t, alpha, sigma, kind, space, of_data), target

    converted, target = in_space(space)
    if training.LOSS_FLOOR is not None:
        before, after = (x0_gain(one, alpha, sigma, of_data) for one in (kind, space))
        kept = (after / (training.LOSS_FLOOR * before)).clamp(max=1.0)
        converted = target + per_sample(kept, target) * (converted - target)
    trained = loss(converted, target, logsnr)
    with torch.no_grad():
        by_space = {
            space: elementwise_loss(*in_space(space), training.LOSS_FN)
            for space in SPACE_SUMS.values()
        }
    return SampleLosses(loss=trained.float(), by_space=by_space, logsnr=logsnr, weight=draws.weight)
