"""Denoised: a network's prediction, guided, read as clean images and noise.

Guidance exaggerates a prediction away from a worse one,

    worse + guidance (pred - worse)

guidance = 1 is the prediction itself, 0 the worse one. (Ho & Salimans' w is guidance - 1.) Worse is

    classifier-free    the prediction for the null class                     Ho & Salimans 2022
    autoguidance       that of another network, of an earlier checkpoint or another average, for the
                       same labels                                           Karras et al. 2024

It may be limited to an interval of logsnr (Kynkaanniemi et al. 2024), outside of which the network
is called once, and rescaled, so that the guided prediction has a standard deviation nearer to that
of the plain one (Lin et al. 2023, section 3.4):

    rescale std(pred) / std(guided) guided + (1 - rescale) guided
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddpm.diffusion import NoiseSchedule, network_input, noise_from_pred, per_sample, x0_from_pred
from ddpm.sampling.spacing import Level

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Predict = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Estimate of the clean images and the noise in a state, both (N, C, H, W)."""

    x0_hat: Tensor
    noise_hat: Tensor


Denoise = Callable[[Tensor, Level], Denoised]


class TimestepNetwork(nn.Module):
    """A network as a function of timesteps: (x_t, t int64 (N,) in [1, T], labels) -> prediction.

    alpha, sigma: the schedule's table, float64 (T + 1,).
    """

    alpha: Tensor
    sigma: Tensor
    time: Tensor

    def __init__(self, network: nn.Module, schedule: NoiseSchedule, pred_type: str) -> None:
        super().__init__()
        self.network, self.pred_type, self.sigma_data = network, pred_type, schedule.sigma_data
        t = torch.arange(schedule.num_timesteps + 1)
        time = schedule.network_time(t.double() / schedule.num_timesteps, schedule.logsnr_at(t))
        alpha, sigma = schedule.alpha_sigma_at(t)
        for name, table in (("alpha", alpha), ("sigma", sigma), ("time", time.float())):
            self.register_buffer(name, table)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        given = network_input(x_t, self.alpha[t], self.sigma[t], self.pred_type, self.sigma_data)
        prediction: Tensor = self.network(given, self.time[t], labels)
        return prediction


def denoiser(
    predict: Predict,
    pred_type: str,
    sigma_data: float | None = None,
    *,
    clips: bool,
    recomputes_noise: bool,
) -> Denoise:
    """(x_t, level) -> Denoised, by predict(network_input() of x_t, time (N,), logsnr).

    sigma_data: of edm.
    clips: x0_hat is clamped to [-1, 1] (Ho et al. 2020).  recomputes_noise: noise_hat is then
    derived again, so that x_t = alpha x0_hat + sigma noise_hat.
    """

    def denoise(x_t: Tensor, level: Level) -> Denoised:
        time = x_t.new_full((len(x_t),), level.network_time)
        alpha, sigma = level.alpha, level.sigma
        given = network_input(x_t, alpha, sigma, pred_type, sigma_data)
        pred = predict(given, time, float(level.logsnr)).to(x_t.dtype)
        if pred.shape != x_t.shape:
            raise ValueError(
                f"the network returned {tuple(pred.shape)} for {tuple(x_t.shape)}; both must agree"
            )
        x0_hat = x0_from_pred(pred, x_t, alpha, sigma, pred_type, sigma_data)
        noise_hat = noise_from_pred(pred, x_t, alpha, sigma, pred_type, sigma_data)
        if not clips:
            return Denoised(x0_hat=x0_hat, noise_hat=noise_hat)
        clipped = x0_hat.clamp(-1.0, 1.0)
        if recomputes_noise:
            # (x_t - alpha clipped) / sigma, in the form that leaves unclipped pixels alone
            noise_hat = noise_hat + per_sample(alpha / sigma, x_t) * (x0_hat - clipped)
        return Denoised(x0_hat=clipped, noise_hat=noise_hat)

    return denoise


def guided(
    network: Network,
    labels: Tensor | None,
    num_images: int,
    *,
    guidance: float = 1.0,
    null_label: int | None = None,
    guide: Network | None = None,
    interval: tuple[float, float] | None = None,
    rescale: float = 0.0,
) -> Predict:
    """The network with its labels, guided where guidance is not 1: (x_t, time, logsnr) -> pred.

    guide: the network to be guided away from; None is the null class.
    interval: the lowest and the highest logsnr that is guided; None is all.  rescale: in [0, 1].
    Raises ValueError for labels that are not (num_images,), for guidance that has neither a guide
    nor labels and a null label, and for numbers that cannot be.
    """
    if interval is not None and not interval[0] <= interval[1]:
        raise ValueError(f"interval is {interval}; give the lower logsnr first")
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale is {rescale}; give one from 0 to 1")
    if labels is not None and labels.shape != (num_images,):
        raise ValueError(f"labels is {tuple(labels.shape)}; give one for each of {num_images} ids")
    if guidance == 1.0:
        return lambda x_t, time, logsnr: network(x_t, time, labels)
    worse, worse_labels = guide, labels
    if worse is None:
        if labels is None or null_label is None:
            raise ValueError(
                f"guidance is {guidance} but {'labels' if labels is None else 'null_label'} is "
                "missing; give both, or guidance 1"
            )
        worse, worse_labels = network, torch.full_like(labels, null_label)

    def predict(x_t: Tensor, time: Tensor, logsnr: float) -> Tensor:
        if interval is not None and not interval[0] <= logsnr <= interval[1]:
            return network(x_t, time, labels)
        # Not one call of twice the size: libraries may change bits with the batch size.
        away, pred = worse(x_t, time, worse_labels), network(x_t, time, labels)
        away, pred = away.to(x_t.dtype), pred.to(x_t.dtype)
        mixed = away + guidance * (pred - away)
        return mixed if rescale == 0 else _rescaled(mixed, pred, rescale)

    return predict


def _rescaled(mixed: Tensor, pred: Tensor, rescale: float) -> Tensor:
    """mixed, its standard deviation over each image moved towards that of pred."""
    axes = tuple(range(1, mixed.ndim))
    ratio = pred.std(dim=axes, keepdim=True) / mixed.std(dim=axes, keepdim=True)
    # A constant image has nothing to rescale.
    factor = 1.0 + rescale * (torch.where(ratio.isfinite(), ratio, 1.0) - 1.0)
    return factor * mixed
