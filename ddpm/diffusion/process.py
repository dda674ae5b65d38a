"""Forward process, posterior, prediction types and losses.

    x_t = alpha x_0 + sigma noise,  velocity = alpha noise - sigma x_0  (Salimans & Ho 2022, App. D)

(x_t, velocity) is (x_0, noise) turned by the angle with cosine alpha and sine sigma, so that

    x_0 = alpha x_t - sigma velocity,   noise = alpha velocity + sigma x_t

need no division. Two conversions have to divide: x_0 from noise by alpha (a gain of 1 / alpha,
without limit at zero terminal SNR) and noise from x_0 by sigma (not defined at t = 0). Nothing is
clipped.

Two further predictions belong to other paths of the same states, x_t / alpha and x_t / (alpha +
sigma), and their networks are given the state c_in x_t:

    edm    F = (sigma x_0 - sigma_data^2 alpha noise) c_in / sigma_data, the output of a network
           preconditioned for data of deviation sigma_data        (Karras et al. 2022, Table 1);
           c_in = 1 / sqrt(sigma^2 + sigma_data^2 alpha^2)
    flow   F = noise - x_0, the velocity of the straight path from x_0, at time 0, to noise, at 1;
           c_in = 1 / (alpha + sigma), its point at time sigma / (alpha + sigma)
                                                     (Liu et al. 2022; Lipman et al. 2023)

With Karras' standard deviation s = sigma / alpha of the noise and the state x = x_t / alpha,

    x_0_hat = c_skip x + c_out F,   c_skip = sigma_data^2 / (s^2 + sigma_data^2),
    c_out = s sigma_data / sqrt(s^2 + sigma_data^2),  and  c_in x_t = x / sqrt(s^2 + sigma_data^2)

and a weight of 1 on F is the paper's 1 / c_out^2 on x_0. With sigma_data = 1 F is the velocity with
the other sign. From both, x_0 and noise follow without division by what may vanish.

x_t, x_0, noise, predictions are (N, ...), usually (N, C, H, W). alpha and sigma are float64, (N,)
or of no dimension, as NoiseSchedule gives them; they are cast where they meet an image, and all
arithmetic is in float32 or wider.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from ddpm.diffusion.philox import Stream, permutation, words
from ddpm.diffusion.schedule import AlphaSigma, NoiseSchedule, check_choice

PRED_TYPES: tuple[str, ...] = ("noise", "image", "velocity", "edm", "flow")
_SCALED = ("edm", "flow")  # whose networks are given c_in x_t
LOSS_FNS: tuple[str, ...] = ("MSE", "MAE", "HUBER")
LOSS_WEIGHTINGS: tuple[str, ...] = ("uniform", "snr", "truncated_snr", "min_snr", "p2")


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A normal distribution with independent pixels: mean (N, ...), variance (N, 1, ...)."""

    mean: Tensor
    variance: Tensor


def q_sample(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Clean images diffused to timestep t: a draw from q(x_t | x_0).

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise                        (Ho et al. 2020, Eq. 4)

    x0, noise: (N, ...), x0 in [-1, 1].  t: int64 (N,) in [0, T].  Returns (N, ...), dtype of x0.
    Raises ValueError as NoiseSchedule.alpha_sigma_at().
    """
    return diffuse(x0, noise, *schedule.alpha_sigma_at(t)).to(x0.dtype)


def diffuse(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """x_t = alpha x_0 + sigma noise, for times that are no timesteps too.  Returns (N, ...)."""
    return per_sample(alpha, x0) * x0 + per_sample(sigma, x0) * noise


def q_posterior(
    schedule: NoiseSchedule, x_t: Tensor, x0: Tensor, t: Tensor | int, s: Tensor | int
) -> Gaussian:
    """Distribution q(x_s | x_t, x_0) of an earlier state, for any s < t.

    With r = snr_t / snr_s (Ho et al. 2020, Eq. 7 is the case s = t - 1):

        mean = alpha_s (1 - r) x_0 + sqrt(r) sigma_s / sigma_t x_t,   variance = sigma_s^2 (1 - r)

    x_t, x0: (N, ...).  t, s: int64 (N,) or an int, in [0, T].  s = 0 gives x_0 with variance 0.
    Raises ValueError unless s < t.
    """
    t, s = check_step(t, s)
    _, sigma_t = schedule.alpha_sigma_at(t)
    alpha_s, sigma_s = schedule.alpha_sigma_at(s)
    log_ratio = schedule.logsnr_at(t) - schedule.logsnr_at(s)
    from_x0 = per_sample(-alpha_s * torch.expm1(log_ratio), x_t)
    from_x_t = per_sample(torch.exp(0.5 * log_ratio) * sigma_s / sigma_t, x_t)
    return Gaussian(
        mean=from_x0 * x0 + from_x_t * x_t,
        variance=per_sample(-(sigma_s**2) * torch.expm1(log_ratio), x_t),
    )


def input_scale(
    pred_type: str, alpha: Tensor, sigma: Tensor, sigma_data: float | None = None
) -> Tensor:
    """c_in, by which a network of this prediction type is given x_t: float64, shape of alpha."""
    check_choice("pred_type", pred_type, PRED_TYPES)
    if pred_type == "flow":
        return 1 / (alpha + sigma)
    if pred_type == "edm":
        return 1 / torch.hypot(sigma, _known(sigma_data) * alpha)
    return torch.ones_like(alpha)


def network_input(
    x_t: Tensor, alpha: Tensor, sigma: Tensor, pred_type: str, sigma_data: float | None = None
) -> Tensor:
    """c_in x_t, the state as a network of this prediction type is given it.  Returns (N, ...)."""
    if pred_type not in _SCALED:
        return x_t
    return (per_sample(input_scale(pred_type, alpha, sigma, sigma_data), x_t) * x_t).to(x_t.dtype)


def x0_from_pred(
    pred: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    pred_type: str,
    sigma_data: float | None = None,
) -> Tensor:
    """Clean image that a prediction implies. From noise it divides by alpha.  Returns (N, ...)."""
    check_choice("pred_type", pred_type, PRED_TYPES)
    if pred_type == "image":
        return pred
    if pred_type == "noise":
        return (x_t - per_sample(sigma, x_t) * pred) / per_sample(alpha, x_t)
    (of_state, of_pred), _ = _inverse(pred_type, alpha, sigma, sigma_data)
    return per_sample(of_state, x_t) * x_t + per_sample(of_pred, x_t) * pred


def noise_from_pred(
    pred: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    pred_type: str,
    sigma_data: float | None = None,
) -> Tensor:
    """Noise that a prediction implies. From an image it divides by sigma.  Returns (N, ...)."""
    check_choice("pred_type", pred_type, PRED_TYPES)
    if pred_type == "noise":
        return pred
    if pred_type == "image":
        return noise_from_x0(pred, x_t, alpha, sigma)
    _, (of_state, of_pred) = _inverse(pred_type, alpha, sigma, sigma_data)
    return per_sample(of_state, x_t) * x_t + per_sample(of_pred, x_t) * pred


def _inverse(
    pred_type: str, alpha: Tensor, sigma: Tensor, sigma_data: float | None
) -> tuple[AlphaSigma, AlphaSigma]:
    """((a, b), (c, d)) with x_0 = a x_t + b pred and noise = c x_t + d pred.

    Of velocity, edm and flow, for which all four are finite at every noise level.
    """
    if pred_type == "velocity":
        return (alpha, -sigma), (sigma, alpha)
    scale = input_scale(pred_type, alpha, sigma, sigma_data)
    if pred_type == "flow":
        return (scale, -sigma * scale), (scale, alpha * scale)
    by_data = _known(sigma_data) * scale
    return (alpha * by_data**2, sigma * by_data), (sigma * scale**2, -alpha * by_data)


def noise_from_x0(x0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """noise = (x_t - alpha x_0) / sigma: not defined at t = 0.  Returns (N, ...)."""
    return (x_t - per_sample(alpha, x_t) * x0) / per_sample(sigma, x_t)


def target_for(
    pred_type: str,
    x0: Tensor,
    noise: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    sigma_data: float | None = None,
) -> Tensor:
    """Target of a network of this prediction type.  Returns (N, ...)."""
    check_choice("pred_type", pred_type, PRED_TYPES)
    if pred_type == "noise":
        return noise
    if pred_type == "image":
        return x0
    if pred_type == "flow":
        return noise - x0
    if pred_type == "edm":
        deviation, scale = _known(sigma_data), input_scale(pred_type, alpha, sigma, sigma_data)
        of_x0, of_noise = sigma * scale / deviation, alpha * scale * deviation
        return per_sample(of_x0, x0) * x0 - per_sample(of_noise, x0) * noise
    return per_sample(alpha, x0) * noise - per_sample(sigma, x0) * x0


def convert_prediction(
    pred: Tensor,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    source: str,
    target: str,
    sigma_data: float | None = None,
) -> Tensor:
    """A prediction of type `source` in the terms of type `target`; equal types return pred itself.

    Divides by alpha from noise, and by sigma from image to all others.  sigma_data: of edm.
    """
    check_choice("source", source, PRED_TYPES)
    check_choice("target", target, PRED_TYPES)
    if source == target:
        return pred
    given = (pred, x_t, alpha, sigma, source, sigma_data)
    if target == "image":
        return x0_from_pred(*given)
    if target == "noise":
        return noise_from_pred(*given)
    x0, noise = x0_from_pred(*given), noise_from_pred(*given)
    return target_for(target, x0, noise, alpha, sigma, sigma_data)


def x0_gain(
    pred_type: str, alpha: Tensor, sigma: Tensor, sigma_data: float | None = None
) -> Tensor:
    """Error of x_0 that an error of 1 in a prediction makes: float64, shape of alpha.

    1 of image, sigma / alpha of noise, sigma of velocity, sigma / (alpha + sigma) of flow, c_out of
    edm. The gain of a conversion is the quotient of two.
    """
    if pred_type == "image":
        return torch.ones_like(sigma)
    if pred_type == "noise":
        return sigma / alpha
    scale = input_scale(pred_type, alpha, sigma, sigma_data)
    return sigma * scale * (_known(sigma_data) if pred_type == "edm" else 1)


def _known(sigma_data: float | None) -> float:
    """sigma_data of edm.  Raises ValueError where it is missing or not positive."""
    if sigma_data is None or not sigma_data > 0:
        raise ValueError(
            f"sigma_data is {sigma_data} but edm needs it; give the data's standard deviation, as "
            "NoiseSchedule's sigma_data"
        )
    return sigma_data


def loss_weight(
    logsnr: Tensor,
    loss_space: str,
    weighting: str,
    *,
    gamma: float = 5.0,
    sigma_data: float | None = None,
) -> Tensor:
    """Weight of each sample's loss, for a squared error in loss_space.

    A weight w on ||x0_hat - x_0||^2 is w / snr on the noise, w / (snr + 1) on the velocity, and
    x0_gain^2 w on any:

        snr            w = snr, 1 on the noise               (Ho et al. 2020, Eq. 14)
        truncated_snr  w = max(snr, 1)                       (Salimans & Ho 2022, section 4)
        min_snr        w = min(snr, gamma)                   (Hang et al. 2023)
        p2             w = snr / (1 + snr)                   (Choi et al. 2022, with k = gamma = 1)

    and uniform is 1 in the loss space itself. The quotients are simplified first, so snr = 0 and
    snr = infinity give the limits; those are infinite only for snr and truncated_snr on the image
    at t = 0 and for truncated_snr on the noise at zero terminal SNR.

    logsnr: float64 (N,).  gamma: of min_snr, positive, infinity allowed.  Returns float64 (N,).
    sigma_data: of edm.  Raises ValueError for an unknown space or weighting, or gamma <= 0.
    """
    check_choice("loss_space", loss_space, PRED_TYPES)
    check_choice("weighting", weighting, LOSS_WEIGHTINGS)
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; give a positive number")
    one = torch.ones_like(logsnr)
    snr, inverse = torch.exp(logsnr), torch.exp(-logsnr)
    # snr / (snr + 1) and 1 / (snr + 1)
    signal, noise = torch.sigmoid(logsnr), torch.sigmoid(-logsnr)
    if weighting == "min_snr" and math.isinf(gamma):
        weighting = "snr"
    by_space = {
        "uniform": (one, one, one),
        "snr": (one, snr, signal),
        "truncated_snr": (inverse.clamp(min=1), snr.clamp(min=1), torch.maximum(signal, noise)),
        "min_snr": (
            (gamma * inverse).clamp(max=1),
            snr.clamp(max=gamma),
            torch.minimum(signal, gamma * noise),
        ),
        "p2": (noise, signal, signal * noise),
    }[weighting]
    if weighting == "uniform" or loss_space not in _SCALED:
        return by_space[min(PRED_TYPES.index(loss_space), 2)]
    # of the velocity's, the quotient of the gains: it has no limit to be taken
    alpha, sigma = signal.sqrt(), noise.sqrt()
    scale = input_scale(loss_space, alpha, sigma, sigma_data)
    return by_space[2] * (scale * (_known(sigma_data) if loss_space == "edm" else 1)) ** 2


def elementwise_loss(pred: Tensor, target: Tensor, loss_fn: str) -> Tensor:
    """Mean over a sample's elements of e^2, |e|, or Huber's function of e = pred - target.

    HUBER is e^2 / 2 up to |e| = 1 and |e| - 1/2 beyond.  pred, target: (N, ...).  Returns (N,),
    float32 or wider.  Raises ValueError for another loss_fn or unequal shapes.
    """
    check_choice("loss_fn", loss_fn, LOSS_FNS)
    if pred.shape != target.shape:
        raise ValueError(f"pred is {tuple(pred.shape)} but target is {tuple(target.shape)}")
    error = (pred - target).flatten(1)
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    if loss_fn == "MSE":
        return error.square().mean(1)
    if loss_fn == "MAE":
        return error.abs().mean(1)
    return huber_loss(error, torch.zeros_like(error), reduction="none").mean(1)


def uniform_timesteps(seed: int, positions: Tensor, num_timesteps: int) -> Tensor:
    """Independent uniform timesteps, t = 1 + floor(r T / 2^32), r a word keyed by the position.

    positions: int64 (N,), in the endless order of training samples.  Returns int64 (N,) in [1, T].
    """
    r = words(seed, Stream.TIME, positions, 1)[:, 0]
    return 1 + (r * num_timesteps >> 32)


def stratified_timesteps(
    seed: int, step: int, slots: Tensor, batch_size: int, num_timesteps: int
) -> Tensor:
    """Timesteps of which each of batch_size equal strata of {1, ..., T} holds exactly one.

    t = 1 + floor((pi(slot) + r / 2^32) T / batch_size), pi a permutation keyed by the step. Every
    slot alone is uniform, so the expected loss is that of uniform_timesteps(), its variance
    smaller.

    slots: int64 (N,), places in the global batch.  Returns int64 (N,) in [1, T].
    Raises ValueError for a slot outside [0, batch_size), on the CPU.
    """
    if slots.device.type == "cpu" and not bool(((slots >= 0) & (slots < batch_size)).all()):
        raise ValueError(f"slots reach from {slots.min()} to {slots.max()} of {batch_size} places")
    stratum = permutation(seed, Stream.TIME, batch_size, step=1, id=step).to(slots.device)[slots]
    r = words(seed, Stream.TIME, step * batch_size + slots, 1)[:, 0]
    return 1 + (stratum * num_timesteps + (r * num_timesteps >> 32)) // batch_size


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """A number a sample as a factor of x: (N, 1, ...) on x's device, float32 or x's if wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return coefficient.to(device=x.device, dtype=dtype).view(-1, *[1] * (x.ndim - 1))


def check_step(t: Tensor | int, s: Tensor | int) -> tuple[Tensor, Tensor]:
    """Two timesteps of a reverse step as int64 tensors.  Raises ValueError unless s < t."""
    t, s = torch.as_tensor(t), torch.as_tensor(s)
    if t.device.type == "cpu" and s.device.type == "cpu" and not bool((s < t).all()):
        raise ValueError(f"a reverse step goes from t to an earlier s, not from {t} to {s}")
    return t, s
