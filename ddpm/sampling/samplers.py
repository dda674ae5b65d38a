"""Reverse process: from noise to images, over any falling sequence of noise levels.

One loop: the network's prediction at t is read as Denoised, the clean images x0_hat and the noise
noise_hat (denoise.py), and a sampler steps to the next level s (spacing.py), until s = 0, where
x0_hat is the image. With rho = snr_t / snr_s and h = (logsnr_s - logsnr_t) / 2:

    ddim   x_s = alpha_s x0_hat + sqrt(sigma_s^2 - step_std^2) noise_hat + step_std z
           step_std = eta sigma_s sqrt(1 - rho)                     Song et al. 2021, Eq. 12 and 16
    ddpm   ddim with eta 1: q_posterior() for any pair                             Ho et al. 2020
    heun   ddim with eta 0, and half the change of noise_hat over that step: the trapezoid for
           d(x / alpha) / d(sigma / alpha) = noise_hat             Karras et al. 2022, Algorithm 1
    dpmpp_2m      ddim with eta 0, and alpha_s (1 - exp(-h)) of half the change of x0_hat that its
                  last one, over h_before, promises for h          Lu et al. 2022b, Algorithm 2
    dpmpp_2m_sde  the same upon ddpm, with 1 - rho for 1 - exp(-h)  Lu et al. 2022b, section 5

All are ddim plus a correction that vanishes where it is not defined, so at s = 0 every one returns
x0_hat, with no noise; a step out of zero SNR, or next to it, and the first of a walk are of first
order. Whatever eta, x_s has the marginal of the forward process where x0_hat is right.

Draws are keyed by (seed, image id): of the start in Stream.X_T; of step noise in Stream.STEP_NOISE
at the key of level s, which is s itself on whole timesteps; of the way back up, with resampling, in
Stream.RESAMPLE likewise; at the k-th return to a level, k << 20 is added to the key. The state is
float32, coefficients are float64 until they meet it; only the network may work in less.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ddpm.diffusion import (
    PRED_TYPES,
    NoiseSchedule,
    Stream,
    check_choice,
    check_step,
    diffuse,
    noise_from_x0,
    normal,
    per_sample,
)
from ddpm.sampling.denoise import Denoise, Denoised, Network, denoiser, guided
from ddpm.sampling.spacing import MAX_VISITS, Level, below, walk_levels

Constrain = Callable[[Tensor, Level, Tensor], Tensor]

# heun multiplies a network's error in noise_hat by the weight of its correction. Over 20 steps even
# in log SNR that is below 1, over 20 even timesteps of iddpm_cosine, next to zero SNR at T, 789.
_HEUN_GAIN = 30.0


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step, and what a sampler may use for it.

    estimate: at `now`, of the state x_t = alpha x0_hat + sigma noise_hat.
    before: level and estimate of the step that led to x_t; None for the first.
    denoise: the estimate of another state at another level; calls the network.
    draw: z, standard normal.  eta: of ddim.
    """

    estimate: Denoised
    now: Level
    then: Level
    draw: Callable[[], Tensor]
    denoise: Denoise
    before: tuple[Level, Denoised] | None = None
    eta: float = 0.0

    @property
    def log_rho(self) -> Tensor:
        """ln(snr_t / snr_s), negative."""
        return self.now.logsnr - self.then.logsnr


def ddim(move: Move) -> Tensor:
    """DDIM: eta from 0, without noise, to 1, the ancestral sampler."""
    noise = None if move.eta == 0 or move.then.is_clean else move.draw()
    return _ddim(move.estimate, move.now, move.then, move.eta, noise)


def ddpm(move: Move) -> Tensor:
    """Ancestral sampler."""
    noise = None if move.then.is_clean else move.draw()
    return _ddim(move.estimate, move.now, move.then, 1.0, noise)


def heun(move: Move) -> Tensor:
    """Second order with two calls of the network; one where it is a step of ddim."""
    now, then = move.now, move.then
    x_s = _ddim(move.estimate, now, then, 0.0, None)
    half = 0.5 * (then.sigma - then.alpha * now.sigma / now.alpha)  # -inf out of zero SNR
    if then.is_clean or half < -_HEUN_GAIN:
        return x_s
    change = move.denoise(x_s, then).noise_hat - move.estimate.noise_hat
    return x_s + per_sample(half, x_s) * change


def dpmpp_2m(move: Move) -> Tensor:
    """DPM-Solver++(2M): second order by the estimate before, with one call of the network."""
    x_s = _ddim(move.estimate, move.now, move.then, 0.0, None)
    return _extrapolated(move, x_s, -move.then.alpha * torch.expm1(0.5 * move.log_rho))


def dpmpp_2m_sde(move: Move) -> Tensor:
    """DPM-Solver++(2M) with the noise of the ancestral sampler."""
    return _extrapolated(move, ddpm(move), -move.then.alpha * torch.expm1(move.log_rho))


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A sampler as the reverse process, its costs and its configuration know it.

    step: x_s from a Move.  title: as reports write it.
    calls: of the network, in every step but the last, which is one call for all.
    noise: none; all, that of the ancestral sampler; or eta, as much as ddim_eta says.
    """

    step: Callable[[Move], Tensor]
    title: str
    calls: int
    noise: Literal["none", "all", "eta"]


SAMPLERS = {
    "ddim": Sampler(step=ddim, title="DDIM", calls=1, noise="eta"),
    "ddpm": Sampler(step=ddpm, title="DDPM", calls=1, noise="all"),
    "heun": Sampler(step=heun, title="Heun", calls=2, noise="none"),
    "dpmpp_2m": Sampler(step=dpmpp_2m, title="DPM-Solver++(2M)", calls=1, noise="none"),
    "dpmpp_2m_sde": Sampler(step=dpmpp_2m_sde, title="DPM-Solver++(2M) SDE", calls=1, noise="all"),
}


def _ddim(estimate: Denoised, now: Level, then: Level, eta: float, noise: Tensor | None) -> Tensor:
    """ddim with z = noise, or without its term: then the mean.  Levels may be (N,).

    The direction is in the form that does not cancel.
    """
    x0_hat, noise_hat = estimate.x0_hat, estimate.noise_hat
    log_rho = now.logsnr - then.logsnr
    # sigma_s^2 - step_std^2 = sigma_s^2 (1 - eta^2 + eta^2 rho)
    direction = then.sigma * torch.sqrt(1.0 - eta**2 + eta**2 * torch.exp(log_rho))
    x_s = per_sample(then.alpha, x0_hat) * x0_hat + per_sample(direction, x0_hat) * noise_hat
    if eta > 0 and noise is not None:
        step_std = eta * then.sigma * torch.sqrt(-torch.expm1(log_rho))
        x_s = x_s + per_sample(step_std, x0_hat) * noise
    return x_s


def _extrapolated(move: Move, x_s: Tensor, weight: Tensor) -> Tensor:
    """x_s with half the change of x0_hat that the last step promises for this one."""
    if move.before is None or move.then.is_clean:
        return x_s
    level, estimate = move.before
    # h / h_before: 0 after a step out of zero SNR
    ratio = move.log_rho / (level.logsnr - move.now.logsnr)
    change = move.estimate.x0_hat - estimate.x0_hat
    return x_s + per_sample(0.5 * weight * ratio, x_s) * change


def renoised(x_s: Tensor, then: Level, now: Level, noise: Tensor) -> Tensor:
    """From s back up to t, by the forward process: a draw from q(x_t | x_s).

    x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z
    """
    std = now.sigma * torch.sqrt(-torch.expm1(now.logsnr - then.logsnr))
    return per_sample(now.alpha / then.alpha, x_s) * x_s + per_sample(std, x_s) * noise


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Choices of a walk: all that images depend on besides networks, schedule, number and label.

    num_steps: steps, spaced as `spacing` says (one of SPACINGS); or reverse_stride: timesteps each.
    between: the logsnr that the spacing goes from and to, as in walk_levels().
    sampler: one of SAMPLERS.  ddim_eta: in [0, 1], of ddim alone.
    guidance, guidance_interval, guidance_rescale: as in denoise.guided(); guidance 1 is off.
    clip_denoise: x0_hat is clamped to [-1, 1]; recompute_noise then makes noise_hat fit it
        (as Ho et al. 2020 do), otherwise it stays as predicted.
    resamples: times every step but the last is taken again, from x_s renoised to t, so that what a
        constraint fixed and what is drawn come to agree (Lugmayr et al. 2022, jumps of one step).
    Raises ValueError for what cannot be.
    """

    pred_type: str
    num_steps: int | None = None
    reverse_stride: int = 1
    spacing: str = "trailing"
    between: tuple[float, float] | None = None
    sampler: str = "ddim"
    ddim_eta: float = 0.0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    clip_denoise: bool = False
    recompute_noise: bool = True
    resamples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("pred_type", self.pred_type, PRED_TYPES)
        check_choice("sampler", self.sampler, SAMPLERS)
        _check_eta(self.ddim_eta)
        if self.ddim_eta != 0 and SAMPLERS[self.sampler].noise != "eta":
            raise ValueError(
                f"eta is {self.ddim_eta} but sampler is {self.sampler}; eta belongs to ddim"
            )
        if not 0 <= self.resamples < MAX_VISITS:
            raise ValueError(f"resamples is {self.resamples}; give one from 0 to {MAX_VISITS - 1}")

    def levels(self, schedule: NoiseSchedule, begin: float = 1.0) -> list[Level]:
        """The levels of the walk from time `begin` down.  Raises ValueError as walk_levels()."""
        if self.pred_type == "noise" and schedule.logsnr_range[0] == -math.inf:
            raise ValueError(
                "pred_type is noise but the schedule ends at zero SNR, where noise says nothing "
                "about the image; predict image or velocity"
            )
        path = walk_levels(
            schedule,
            spacing=self.spacing,
            num_steps=self.num_steps,
            reverse_stride=self.reverse_stride,
            between=self.between,
        )
        return below(path, begin)


@dataclass(frozen=True, kw_only=True)
class WalkStart:
    """First state of a walk, if not noise at time 1: alpha x0 + sigma noise.

    time: in (0, 1]; the walk is the part of the path at or below it.
    x0: (N, C, H, W), the images to begin from (SDEdit, Meng et al. 2022); None: none, at time 1.
    """

    time: float = 1.0
    x0: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x0 is None and self.time != 1.0:
            raise ValueError(f"the start is at time {self.time} without x0; give images, or time 1")


@dataclass(frozen=True, kw_only=True)
class SampleState:
    """One reverse step: from t to s, the clean images it believed in, and the state it reached.

    x_t: (N, C, H, W), the state reached, at timestep s; the images when s is 0.
    x0_hat: (N, C, H, W), the estimate of the images at t, clipped if that was asked for.
    t, s: T times the time; ints where they are whole timesteps.
    """

    x_t: Tensor
    x0_hat: Tensor
    t: float
    s: float


def sample(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: Sequence[int],
    *,
    labels: Tensor | None = None,
    null_label: int | None = None,
    guide: Network | None = None,
    constrain: Constrain | None = None,
    start: WalkStart | None = None,
    **options: Any,
) -> Tensor:
    """Images drawn by the reverse process; the arguments are those of sample_steps().

    Image i depends on (network, schedule, seed, ids[i], labels[i]) and the options alone: its draws
    are bitwise the same in any batch. Returns float32 (N, C, H, W) in model space.
    """
    for state in sample_steps(
        network,
        schedule,
        ids,
        image_shape,
        labels=labels,
        null_label=null_label,
        guide=guide,
        constrain=constrain,
        start=start,
        **options,
    ):
        last = state
    return last.x_t


def sample_steps(
    network: Network,
    schedule: NoiseSchedule,
    ids: Tensor,
    image_shape: Sequence[int],
    *,
    labels: Tensor | None = None,
    null_label: int | None = None,
    guide: Network | None = None,
    constrain: Constrain | None = None,
    start: WalkStart | None = None,
    **options: Any,
) -> Iterator[SampleState]:
    """Steps of the reverse process, each once it is done; the last one has s = 0.

    network: (x_t (N, C, H, W) float32, time (N,) float32, labels (N,) or None) -> (N, C, H, W).
    ids: int64 (N,), global image numbers; everything happens on their device.
    image_shape: (C, H, W).  labels: int64 (N,) or None.
    null_label, guide: what guidance leads away from, as in denoise.guided().
    constrain: (x_s, level of s, ids) -> x_s, applied to every state, the first too; inpainting.
    options: those of SamplerOptions by name; pred_type must be given.

    Raises ValueError, before the first step, for arguments that are impossible or contradict.
    """
    chosen, start = SamplerOptions(**options), start or WalkStart()
    path = chosen.levels(schedule, start.time)
    denoise = denoiser(
        guided(
            network,
            labels,
            len(ids),
            guidance=chosen.guidance,
            null_label=null_label,
            guide=guide,
            interval=chosen.guidance_interval,
            rescale=chosen.guidance_rescale,
        ),
        chosen.pred_type,
        schedule.sigma_data,
        clips=chosen.clip_denoise,
        recomputes_noise=chosen.recompute_noise,
    )
    constrain = constrain or (lambda x_s, level, ids: x_s)
    return _walk(denoise, path, chosen, ids, tuple(image_shape), constrain, start)


@torch.no_grad()
def _walk(
    denoise: Denoise,
    path: list[Level],
    options: SamplerOptions,
    ids: Tensor,
    image_shape: tuple[int, ...],
    constrain: Constrain,
    start: WalkStart,
) -> Iterator[SampleState]:
    """The loop of the reverse process, all its choices made."""

    def noise(stream: Stream, key: int) -> Tensor:
        return normal(options.seed, stream, ids, image_shape, step=key)

    step, before = SAMPLERS[options.sampler].step, None
    x_t = constrain(_first_state(start, path[0], noise(Stream.X_T, 0)), path[0], ids)
    for now, end in pairwise(path):
        for visit in range(1 if end.is_clean else 1 + options.resamples):
            then = end.again(visit)
            if visit > 0:
                back = renoised(x_t, then, now, noise(Stream.RESAMPLE, then.key))
                # What was estimated before led to another x_t than this one.
                x_t, before = constrain(back, now.again(visit), ids), None
            estimate = denoise(x_t, now)
            move = Move(
                estimate=estimate,
                now=now,
                then=then,
                draw=partial(noise, Stream.STEP_NOISE, then.key),
                denoise=denoise,
                before=before,
                eta=options.ddim_eta,
            )
            x_t, before = constrain(step(move), then, ids), (now, estimate)
            yield SampleState(x_t=x_t, x0_hat=estimate.x0_hat, t=now.t, s=then.t)


def _first_state(start: WalkStart, level: Level, noise: Tensor) -> Tensor:
    if start.x0 is None:
        return noise
    if start.x0.shape != noise.shape:
        raise ValueError(f"the start is {tuple(start.x0.shape)}; give an image for every id")
    return diffuse(start.x0.float(), noise, level.alpha, level.sigma)


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    x0_hat: Tensor,
    t: Tensor | int,
    s: Tensor | int,
    eta: float,
    noise: Tensor | None = None,
) -> Tensor:
    """x_s, one reverse step of DDIM from t, given an estimate of the clean images.

    The equation above, with noise_hat = (x_t - alpha_t x0_hat) / sigma_t.

    x_t, x0_hat, noise: (N, ...).  t, s: int64 (N,) or an int, in [0, T].  Returns (N, ...).
    s = 0 returns x0_hat. noise may be None where eta is 0 or s is 0.
    Raises ValueError unless s < t and eta is in [0, 1], and for noise that is missing.
    """
    t, s = check_step(t, s)
    _check_eta(eta)
    if eta > 0 and noise is None and bool((s > 0).any()):
        raise ValueError(f"eta is {eta} and s is not 0, so the step needs noise; none was given")
    now, then = _level_at(schedule, t), _level_at(schedule, s)
    noise_hat = noise_from_x0(x0_hat, x_t, now.alpha, now.sigma)
    return _ddim(Denoised(x0_hat=x0_hat, noise_hat=noise_hat), now, then, eta, noise)


def _level_at(schedule: NoiseSchedule, t: Tensor) -> Level:
    """Timesteps t, (N,) or one, as levels of a single step."""
    alpha, sigma = schedule.alpha_sigma_at(t)
    logsnr = schedule.logsnr_at(t)
    return Level(time=0, t=0, alpha=alpha, sigma=sigma, logsnr=logsnr, network_time=0, key=0)


def _check_eta(eta: float) -> None:
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta is {eta}; give one from 0 (DDIM) to 1 (DDPM)")
