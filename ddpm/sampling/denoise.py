"""What the network believes in: its prediction as clean images and noise, with x0 kept in bounds.

    static     x0_hat clamped to [-1, 1]                                     Ho et al. 2020
    dynamic    clamped to [-s, s] and divided by s, s >= 1 the absolute value that a share p of the
               image's elements does not exceed                   Saharia et al. 2022, section 2.3

After either, noise_hat may be derived again, so that x_t = alpha x0_hat + sigma noise_hat.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import noise_from_pred, per_sample, x0_from_pred
from ddpm.sampling.spacing import Level


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """The clean images and the noise that are seen in a state, both (N, C, H, W)."""

    x0_hat: Tensor
    noise_hat: Tensor


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """Asks a network, (x_t, time (N,), logsnr) -> prediction, and reads its answer.

    clips: keep x0_hat in bounds.  dynamic_threshold: p; None is the static bound.
    recomputes_noise: make noise_hat fit the bounded x0_hat.
    """

    network: Callable[[Tensor, Tensor, float], Tensor]
    pred_type: str
    clips: bool
    dynamic_threshold: float | None
    recomputes_noise: bool

    def __call__(self, x_t: Tensor, level: Level) -> Denoised:
        time = x_t.new_full((len(x_t),), level.time)
        pred = self.network(x_t, time, float(level.logsnr)).to(x_t.dtype)
        if pred.shape != x_t.shape:
            raise ValueError(
                f"the network returned {tuple(pred.shape)} for {tuple(x_t.shape)}; both must agree"
            )
        alpha, sigma = level.alpha, level.sigma
        x0_hat = x0_from_pred(pred, x_t, alpha, sigma, self.pred_type)
        noise_hat = noise_from_pred(pred, x_t, alpha, sigma, self.pred_type)
        if not self.clips:
            return Denoised(x0_hat=x0_hat, noise_hat=noise_hat)
        bounded = bound(x0_hat, self.dynamic_threshold)
        if self.recomputes_noise:
            # (x_t - alpha bounded) / sigma, in the form that leaves unclipped pixels alone
            noise_hat = noise_hat + per_sample(alpha / sigma, x_t) * (x0_hat - bounded)
        return Denoised(x0_hat=bounded, noise_hat=noise_hat)


def bound(x0_hat: Tensor, percentile: float | None) -> Tensor:
    """x0_hat in [-1, 1]: clamped, or by the dynamic threshold of a percentile in (0, 1].

    Of n elements the ceil(p n)-th smallest counts: an element, with no interpolation, so that an
    image whose elements lie in [-1, 1] is left as it is.
    """
    if percentile is None:
        return x0_hat.clamp(-1.0, 1.0)
    sizes = x0_hat.abs().flatten(1)
    rank = min(sizes.shape[1], max(1, math.ceil(percentile * sizes.shape[1])))
    threshold = per_sample(sizes.kthvalue(rank, dim=1).values.clamp(min=1.0), x0_hat)
    return x0_hat.clamp(-threshold, threshold) / threshold


# --------
# Guidance: a prediction, exaggerated away from a worse one.
#
#     worse + guidance (pred - worse)
#
# guidance = 1 is the prediction itself, 0 the worse one. (Ho & Salimans' w is guidance - 1.) Worse is
#
#     classifier-free    the prediction for the null class                     Ho & Salimans 2022
#     autoguidance       that of another network, of an earlier checkpoint or another average, for the
#                        same labels                                           Karras et al. 2024
#
# It may be limited to an interval of logsnr (Kynkaanniemi et al. 2024), outside of which the network
# is called once, and rescaled, so that the guided prediction has a standard deviation nearer to that
# of the plain one (Lin et al. 2023, section 3.4):
#
#     rescale std(pred) / std(guided) guided + (1 - rescale) guided

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, kw_only=True)
class Guiding:
    """How guidance is applied, where it is on.

    interval: the lowest and the highest logsnr that is guided; None is all.
    rescale: in [0, 1].  guide: the network to be guided away from; None is the null class.
    Raises ValueError for what cannot be.
    """

    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guide: Network | None = None

    def __post_init__(self) -> None:
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval is {self.interval}; give the lower logsnr first")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale is {self.rescale}; give one from 0 to 1")

    def reaches(self, logsnr: float) -> bool:
        """Whether this level is guided."""
        return self.interval is None or self.interval[0] <= logsnr <= self.interval[1]


def guided(
    network: Network,
    labels: Tensor | None,
    num_images: int,
    guidance: float,
    null_label: int | None,
    guiding: Guiding,
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The network with its labels, guided where guidance is not 1: (x_t, time, logsnr) -> pred.

    Raises ValueError for labels that are not (num_images,), and for guidance that has neither a
    guide nor labels and a null label.
    """
    if labels is not None and labels.shape != (num_images,):
        raise ValueError(f"labels is {tuple(labels.shape)}; give one for each of {num_images} ids")
    if guidance == 1.0:
        return lambda x_t, time, logsnr: network(x_t, time, labels)
    worse, worse_labels = guiding.guide, labels
    if worse is None:
        if labels is None or null_label is None:
            raise ValueError(
                f"guidance is {guidance} but {'labels' if labels is None else 'null_label'} is "
                "missing; give both, or guidance 1"
            )
        worse, worse_labels = network, torch.full_like(labels, null_label)

    def predict(x_t: Tensor, time: Tensor, logsnr: float) -> Tensor:
        if not guiding.reaches(logsnr):
            return network(x_t, time, labels)
        # Not one call of twice the size: libraries may change bits with the batch size.
        away, pred = worse(x_t, time, worse_labels), network(x_t, time, labels)
        away, pred = away.to(x_t.dtype), pred.to(x_t.dtype)
        mixed = away + guidance * (pred - away)
        return mixed if guiding.rescale == 0 else _rescaled(mixed, pred, guiding.rescale)

    return predict


def _rescaled(mixed: Tensor, pred: Tensor, rescale: float) -> Tensor:
    """mixed, its standard deviation over each image moved towards that of pred."""
    axes = tuple(range(1, mixed.ndim))
    ratio = pred.std(dim=axes, keepdim=True) / mixed.std(dim=axes, keepdim=True)
    # A constant image has nothing to rescale.
    factor = 1.0 + rescale * (torch.where(ratio.isfinite(), ratio, 1.0) - 1.0)
    return factor * mixed
