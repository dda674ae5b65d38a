"""What the network believes in: its prediction as clean images and noise, with x0 kept in bounds.

    static     x0_hat clamped to [-1, 1]                                     Ho et al. 2020
    dynamic    clamped to [-s, s] and divided by s, s >= 1 the absolute value that a share p of the
               image's elements does not exceed                   Saharia et al. 2022, section 2.3

After either, noise_hat may be derived again, so that x_t = alpha x0_hat + sigma noise_hat.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ddpm.diffusion import noise_from_pred, per_sample, x0_from_pred
from ddpm.spacing import Level


@dataclass(frozen=True, kw_only=True)
class Estimate:
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

    def __call__(self, x_t: Tensor, level: Level) -> Estimate:
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
            return Estimate(x0_hat=x0_hat, noise_hat=noise_hat)
        bounded = bound(x0_hat, self.dynamic_threshold)
        if self.recomputes_noise:
            # (x_t - alpha bounded) / sigma, in the form that leaves unclipped pixels alone
            noise_hat = noise_hat + per_sample(alpha / sigma, x_t) * (x0_hat - bounded)
        return Estimate(x0_hat=bounded, noise_hat=noise_hat)


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
