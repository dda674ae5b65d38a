"""The reverse process: from pure noise to images over any falling sequence of timesteps.

A step goes from t to any s < t, by the posterior of DDIM (Song et al. 2021, Eq. 12 and 16):

    x_s = alpha_s x0_hat + sqrt(sigma_s^2 - step_std^2) noise_hat + step_std z,   z ~ N(0, I)
    step_std = eta sigma_s / sigma_t sqrt(1 - abar_t / abar_s) = eta sigma_s sqrt(1 - snr_t / snr_s)

eta = 0 draws no noise; eta = 1 is the ancestral sampler of DDPM, q_posterior() for any pair.
Whatever eta, x_s has the marginal of the forward process where x0_hat is right: the variance given
to z, eta^2 and all, is taken from the direction.

Draws are keyed by (seed, image id): of x_T in Stream.X_T, of z in Stream.STEP_NOISE at step s. The
state is float32, coefficients are float64 until they meet it; only the network may work in less.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm.diffusion import (
    PRED_TYPES,
    check_choice,
    check_step,
    noise_from_pred,
    noise_from_x0,
    per_sample,
    x0_from_pred,
)
from ddpm.guidance import Network, guided
from ddpm.noise import Stream, normal
from ddpm.schedule import NoiseSchedule

Constrain = Callable[[Tensor, int, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SampleState:
    """One reverse step: from t to s, the clean images it believed in, and the state it reached.

    x_t: (N, C, H, W), the state reached, at timestep s; the images when s is 0.
    x0_hat: (N, C, H, W), the network's estimate of the images at t, clipped if that was asked for.
    """

    x_t: Tensor
    x0_hat: Tensor
    t: int
    s: int


def reverse_timesteps(num_timesteps: int, stride: int) -> list[int]:
    """[T, T - stride, ..., 0]: the timesteps to walk, starting at T whatever the stride.

    Raises ValueError unless 1 <= stride <= T.
    """
    if not 1 <= stride <= num_timesteps:
        raise ValueError(f"stride is {stride}; give one from 1 to {num_timesteps}, the timesteps")
    return [*range(num_timesteps, 0, -stride), 0]


def trailing_timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """num_steps + 1 timesteps from T to 0, as even as whole numbers are (Lin et al. 2023, Table 2).

    T i / num_steps, rounded half up.  Raises ValueError unless 1 <= num_steps <= T.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}; give one from 1 to {num_timesteps}, the timesteps"
        )
    return [
        (2 * num_timesteps * i + num_steps) // (2 * num_steps) for i in range(num_steps, -1, -1)
    ]


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    x0_hat: Tensor,
    t: Tensor | int,
    s: Tensor | int,
    eta: float,
    noise: Tensor | None = None,
) -> Tensor:
    """x_s, one reverse step from t, given an estimate of the clean images.

    The equation is in the module's docstring, with noise_hat = (x_t - alpha_t x0_hat) / sigma_t.

    x_t, x0_hat, noise: (N, ...).  t, s: int64 (N,) or an int, in [0, T].  Returns (N, ...).
    s = 0 returns x0_hat. noise may be None where eta is 0 or s is 0.
    Raises ValueError unless s < t and eta is in [0, 1], and for noise that is missing.
    """
    t, s = check_step(t, s)
    noise_hat = noise_from_x0(x0_hat, x_t, *schedule.alpha_sigma_at(t))
    return _step(schedule, x0_hat, noise_hat, t, s, eta, noise)


def sample(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: Sequence[int],
    *,
    pred_type: str,
    reverse_stride: int = 1,
    num_steps: int | None = None,
    ddim_eta: float = 0.0,
    labels: Tensor | None = None,
    seed: int = 0,
    clip_denoise: bool = False,
    guidance: float = 1.0,
    null_label: int | None = None,
    recompute_noise_after_clip: bool = True,
    constrain: Constrain | None = None,
) -> Tensor:
    """Images drawn by the reverse process; the arguments are those of sample_steps().

    Image i depends on (network, schedule, seed, ids[i], labels[i]) and the options alone: its draws
    are bitwise the same in any batch. Returns float32 (N, C, H, W) in model space.
    """
    states = sample_steps(
        network,
        schedule,
        ids,
        image_shape,
        pred_type=pred_type,
        reverse_stride=reverse_stride,
        num_steps=num_steps,
        ddim_eta=ddim_eta,
        labels=labels,
        seed=seed,
        clip_denoise=clip_denoise,
        guidance=guidance,
        null_label=null_label,
        recompute_noise_after_clip=recompute_noise_after_clip,
        constrain=constrain,
    )
    for state in states:
        last = state
    return last.x_t


def sample_steps(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: Sequence[int],
    *,
    pred_type: str,
    reverse_stride: int = 1,
    num_steps: int | None = None,
    ddim_eta: float = 0.0,
    labels: Tensor | None = None,
    seed: int = 0,
    clip_denoise: bool = False,
    guidance: float = 1.0,
    null_label: int | None = None,
    recompute_noise_after_clip: bool = True,
    constrain: Constrain | None = None,
) -> Iterator[SampleState]:
    """The steps of the reverse process, each once it is done; the last one has s = 0.

    network: any callable (x_t (N, C, H, W) float32, time (N,) float32 in [0, 1], labels (N,) or
        None) -> (N, C, H, W).
    ids: int64 (N,), global image numbers; everything happens on their device.
    image_shape: (C, H, W).  labels: int64 (N,) or None.
    reverse_stride: timesteps a step; or num_steps: as many steps, evenly spaced.
    ddim_eta: in [0, 1]; 1 is DDPM.
    guidance: null + guidance (pred - null) replaces the prediction pred, where null is the one for
        null_label (Ho & Salimans 2022); 1 is off and calls the network once a step, not twice.
    clip_denoise: clamp x0_hat to [-1, 1]; recompute_noise_after_clip then makes noise_hat fit it
        (as Ho et al. 2020 do), otherwise it stays as predicted.
    constrain: (x_s, s, ids) -> x_s, applied to every state, x_T with s = T the first; inpainting.

    Raises ValueError, before the first step, for arguments that are impossible or contradict.
    """
    if num_steps is not None and reverse_stride != 1:
        raise ValueError("both num_steps and reverse_stride are given; give one of them")
    if num_steps is None:
        path = reverse_timesteps(schedule.num_timesteps, reverse_stride)
    else:
        path = trailing_timesteps(schedule.num_timesteps, num_steps)
    check_choice("pred_type", pred_type, PRED_TYPES)
    _check_eta(ddim_eta)
    if pred_type == "noise" and schedule.logsnr_range[0] == -math.inf:
        raise ValueError(
            "pred_type is noise but the schedule ends at zero SNR, where noise says nothing about"
            " the image; predict image or velocity"
        )
    process = _Process(
        network=guided(network, labels, len(ids), guidance, null_label),
        schedule=schedule,
        path=path,
        pred_type=pred_type,
        eta=ddim_eta,
        seed=seed,
        clips=clip_denoise,
        recomputes_noise=recompute_noise_after_clip,
        constrain=constrain or (lambda x_s, s, ids: x_s),
    )
    return process.walk(ids, tuple(image_shape))


@dataclass(frozen=True, kw_only=True)
class _Process:
    """The reverse process with all its choices made."""

    network: Callable[[Tensor, Tensor], Tensor]
    schedule: NoiseSchedule
    path: list[int]
    pred_type: str
    eta: float
    seed: int
    clips: bool
    recomputes_noise: bool
    constrain: Constrain

    @torch.no_grad()
    def walk(self, ids: Tensor, image_shape: tuple[int, ...]) -> Iterator[SampleState]:
        x_T = normal(self.seed, Stream.X_T, ids, image_shape)
        x_t = self.constrain(x_T, self.path[0], ids)
        for t, s in zip(self.path, self.path[1:], strict=False):
            x0_hat, noise_hat = self.estimate(x_t, t)
            noise = None
            if self.eta > 0 and s > 0:
                noise = normal(self.seed, Stream.STEP_NOISE, ids, image_shape, step=s)
            pair = torch.tensor(t), torch.tensor(s)
            x_s = _step(self.schedule, x0_hat, noise_hat, *pair, self.eta, noise)
            x_t = self.constrain(x_s, s, ids)
            yield SampleState(x_t=x_t, x0_hat=x0_hat, t=t, s=s)

    def estimate(self, x_t: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The clean images and the noise that the network sees in x_t."""
        time = x_t.new_full((len(x_t),), t / self.schedule.num_timesteps)
        pred = self.network(x_t, time).to(x_t.dtype)
        if pred.shape != x_t.shape:
            raise ValueError(
                f"the network returned {tuple(pred.shape)} for {tuple(x_t.shape)}; both must agree"
            )
        alpha, sigma = self.schedule.alpha_sigma_at(torch.tensor(t))
        x0_hat = x0_from_pred(pred, x_t, alpha, sigma, self.pred_type)
        noise_hat = noise_from_pred(pred, x_t, alpha, sigma, self.pred_type)
        if not self.clips:
            return x0_hat, noise_hat
        clipped = x0_hat.clamp(-1.0, 1.0)
        if self.recomputes_noise:
            # (x_t - alpha clipped) / sigma, in the form that leaves unclipped pixels alone
            noise_hat = noise_hat + per_sample(alpha / sigma, x_t) * (x0_hat - clipped)
        return clipped, noise_hat


def _step(
    schedule: NoiseSchedule,
    x0_hat: Tensor,
    noise_hat: Tensor,
    t: Tensor,
    s: Tensor,
    eta: float,
    noise: Tensor | None,
) -> Tensor:
    """The equation of the module's docstring; the direction in a form that does not cancel."""
    _check_eta(eta)
    alpha_s, sigma_s = schedule.alpha_sigma_at(s)
    log_ratio = schedule.logsnr_at(t) - schedule.logsnr_at(s)
    # sigma_s^2 - step_std^2 = sigma_s^2 (1 - eta^2 + eta^2 snr_t / snr_s)
    direction = sigma_s * torch.sqrt(1.0 - eta**2 + eta**2 * torch.exp(log_ratio))
    x_s = per_sample(alpha_s, x0_hat) * x0_hat + per_sample(direction, x0_hat) * noise_hat
    if eta > 0 and noise is not None:
        step_std = eta * sigma_s * torch.sqrt(-torch.expm1(log_ratio))
        x_s = x_s + per_sample(step_std, x0_hat) * noise
    elif eta > 0 and bool((s > 0).any()):
        raise ValueError(f"eta is {eta} and s is not 0, so the step needs noise; none was given")
    return x_s


def _check_eta(eta: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; give one from 0 (DDIM) to 1 (DDPM)")


def to_uint8(x: Tensor) -> Tensor:
    """Images as bytes: [-1, 1] to 0 .. 255, rounded; values outside are clamped.

    x: float (N, C, H, W).  Returns uint8 (N, H, W, C).  Raises ValueError for NaN.
    """
    levels = x.float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    if bool(levels.isnan().any()):
        raise ValueError("images contain NaN")
    return levels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(images: Tensor) -> Tensor:
    """Bytes as the images a network sees: uint8 (N, H, W, C) to float32 (N, C, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0).contiguous()
