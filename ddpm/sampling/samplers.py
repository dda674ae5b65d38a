"""The steps of the reverse process: pure functions from a noise level t to a lower one s.

With x0_hat and noise_hat the estimate at t, rho = snr_t / snr_s, h = (logsnr_s - logsnr_t) / 2:

    ddim   x_s = alpha_s x0_hat + sqrt(sigma_s^2 - step_std^2) noise_hat + step_std z
           step_std = eta sigma_s sqrt(1 - rho)                     Song et al. 2021, Eq. 12 and 16
    ddpm   ddim with eta 1: q_posterior() for any pair                             Ho et al. 2020
    heun   ddim with eta 0, and half the change of noise_hat over that step: the trapezoid for
           d(x / alpha) / d(sigma / alpha) = noise_hat             Karras et al. 2022, Algorithm 1
    dpmpp_2m      ddim with eta 0, and alpha_s (1 - exp(-h)) of half the change of x0_hat that its
                  last one, over h_before, promises for h          Lu et al. 2022b, Algorithm 2
    dpmpp_2m_sde  the same upon ddpm, with 1 - rho for 1 - exp(-h)  Lu et al. 2022b, section 5
    analytic      ddpm with the variance sigma_s^2 (1 - rho) + (alpha_s (1 - rho))^2 Var(x0 | x_t)
                                                                   Bao et al. 2022, Theorem 1

All are ddim plus a correction that vanishes where it is not defined, so at s = 0 every one returns
x0_hat, with no noise; a step out of zero SNR, or next to it, and the first of a walk are of first
order.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

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
from ddpm.errors import InputError
from ddpm.sampling.denoise import Denoised, Estimator, Guiding, Network, guided
from ddpm.sampling.spacing import MAX_VISITS, Level, levels
from ddpm.sampling.spacing import below as part_below

X0VarianceAt = Callable[[float], float]

# heun multiplies a network's error in noise_hat by the weight of its correction. Over 20 steps even
# in log SNR that is below 1, over 20 even timesteps of iddpm_cosine, next to zero SNR at T, 789.
_HEUN_GAIN = 30.0


@dataclass(frozen=True, kw_only=True)
class Move:
    """One step, and what a sampler may use for it.

    estimate: at `now`, from the state x_t = alpha x0_hat + sigma noise_hat.
    before: level and estimate of the step that led to x_t; None for the first.
    ask: the estimate in another state at another level; calls the network.
    draw: z, standard normal.  eta: of ddim.  x0_variance: Var(x0 | x_t) at a logsnr, of analytic.
    """

    estimate: Denoised
    now: Level
    then: Level
    draw: Callable[[], Tensor]
    ask: Callable[[Tensor, Level], Denoised]
    before: tuple[Level, Denoised] | None = None
    eta: float = 0.0
    x0_variance: X0VarianceAt | None = None

    @property
    def log_rho(self) -> Tensor:
        """ln(snr_t / snr_s), negative."""
        return self.now.logsnr - self.then.logsnr


def ddim(move: Move) -> Tensor:
    """eta from 0, without noise, to 1, the ancestral sampler."""
    noise = None if move.eta == 0 or move.then.is_clean else move.draw()
    return ddim_move(move.estimate, move.now, move.then, move.eta, noise)


def ddpm(move: Move) -> Tensor:
    """The ancestral sampler."""
    noise = None if move.then.is_clean else move.draw()
    return ddim_move(move.estimate, move.now, move.then, 1.0, noise)


def heun(move: Move) -> Tensor:
    """Of second order, with two calls of the network; one where it is a step of ddim."""
    now, then = move.now, move.then
    x_s = ddim_move(move.estimate, now, then, 0.0, None)
    half = 0.5 * (then.sigma - then.alpha * now.sigma / now.alpha)  # -inf out of zero SNR
    if then.is_clean or half < -_HEUN_GAIN:
        return x_s
    change = move.ask(x_s, then).noise_hat - move.estimate.noise_hat
    return x_s + per_sample(half, x_s) * change


def dpmpp_2m(move: Move) -> Tensor:
    """Of second order by the estimate before, with one call of the network."""
    x_s = ddim_move(move.estimate, move.now, move.then, 0.0, None)
    return _extrapolated(move, x_s, -move.then.alpha * torch.expm1(0.5 * move.log_rho))


def dpmpp_2m_sde(move: Move) -> Tensor:
    """dpmpp_2m with the noise of the ancestral sampler."""
    return _extrapolated(move, ddpm(move), -move.then.alpha * torch.expm1(move.log_rho))


def analytic(move: Move) -> Tensor:
    """The ancestral sampler with the variance that is optimal for any length of step."""
    if move.then.is_clean:
        return ddpm(move)
    if move.x0_variance is None:
        raise ValueError("the analytic sampler needs x0_variance; none was given")
    unknown = min(1.0, max(0.0, move.x0_variance(float(move.now.logsnr))))
    share = -torch.expm1(move.log_rho)
    variance = move.then.sigma**2 * share + (move.then.alpha * share) ** 2 * unknown
    mean = ddim_move(move.estimate, move.now, move.then, 1.0, None)
    return mean + per_sample(variance.sqrt(), mean) * move.draw()


SAMPLERS: dict[str, Callable[[Move], Tensor]] = {
    "ddim": ddim,
    "ddpm": ddpm,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "analytic": analytic,
}


def ddim_move(
    estimate: Denoised, now: Level, then: Level, eta: float, noise: Tensor | None
) -> Tensor:
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


def renoised(x_s: Tensor, then: Level, now: Level, noise: Tensor) -> Tensor:
    """From s back up to t, by the forward process: a draw from q(x_t | x_s).

    x_t = alpha_t / alpha_s x_s + sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2) z
    """
    std = now.sigma * torch.sqrt(-torch.expm1(now.logsnr - then.logsnr))
    return per_sample(now.alpha / then.alpha, x_s) * x_s + per_sample(std, x_s) * noise


def _extrapolated(move: Move, x_s: Tensor, weight: Tensor) -> Tensor:
    """x_s with half the change of x0_hat that the last step promises for this one."""
    if move.before is None or move.then.is_clean:
        return x_s
    level, estimate = move.before
    # h / h_before: 0 after a step out of zero SNR
    ratio = move.log_rho / (level.logsnr - move.now.logsnr)
    change = move.estimate.x0_hat - estimate.x0_hat
    return x_s + per_sample(0.5 * weight * ratio, x_s) * change


# --------
# The choices of a walk: how levels are spaced and steps taken, and where it begins.


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the reverse process is walked.

    sampler: one of SAMPLERS.  spacing: one of SPACINGS; all but trailing with num_steps.
    between: the logsnr that spacing goes from and to, as in spacing.levels().
    dynamic_threshold: the percentile, in (0, 1], by which clip_denoise bounds x0_hat; None is 1.
    resamples: times every step but the last is taken again, from x_s renoised to t, so that what a
        constraint fixed and what is drawn come to agree (Lugmayr et al. 2022, jumps of one step).
    x0_variance: Var(x0 | x_t) at a logsnr, for the analytic sampler.
    Raises ValueError for what cannot be.
    """

    sampler: str = "ddim"
    spacing: str = "trailing"
    between: tuple[float, float] | None = None
    dynamic_threshold: float | None = None
    resamples: int = 0
    x0_variance: X0VarianceAt | None = None

    def __post_init__(self) -> None:
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        if self.dynamic_threshold is not None and not 0.0 < self.dynamic_threshold <= 1.0:
            raise ValueError(
                f"dynamic_threshold is {self.dynamic_threshold}; give one above 0, at most 1"
            )
        if not 0 <= self.resamples < MAX_VISITS:
            raise ValueError(f"resamples is {self.resamples}; give one from 0 to {MAX_VISITS - 1}")
        if self.sampler == "analytic" and self.x0_variance is None:
            raise ValueError("sampler is analytic but x0_variance is missing; give both")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a walk begins, if not in noise at time 1: alpha x0 + sigma noise.

    time: in (0, 1]; the walk is the part of the path at or below it.
    x0: (N, C, H, W), the images to begin from (SDEdit, Meng et al. 2022); None: none, at time 1.
    """

    time: float = 1.0
    x0: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x0 is None and self.time != 1.0:
            raise ValueError(f"the start is at time {self.time} without x0; give images, or time 1")


# --------
# The reverse process: from noise to images, over any falling sequence of noise levels.
#
# One loop: the network is asked at t, its answer read as an estimate of the clean images and of the
# noise (estimate.py), and a sampler (samplers.py) steps to the next level s (spacing.py), until s = 0
# where the estimate is the image. eta = 0 is DDIM, eta = 1 the ancestral sampler of DDPM; whatever
# eta, x_s has the marginal of the forward process where x0_hat is right.
#
# Draws are keyed by (seed, image id): of the start in Stream.X_T; of step noise in Stream.STEP_NOISE
# at the key of level s, which is s itself on whole timesteps; of the way back up, with resampling, in
# Stream.RESAMPLE likewise; at the k-th return to a level, k << 20 is added to the key. The state is
# float32, coefficients are float64 until they meet it; only the network may work in less.

Constrain = Callable[[Tensor, Level, Tensor], Tensor]
Draws = Callable[[Stream, Tensor, tuple[int, ...], int], Tensor]


def keyed(seed: int) -> Draws:
    """(stream, ids, image shape, key) -> the noise of each image, (N, C, H, W) standard normal."""
    return lambda stream, ids, shape, key: normal(seed, stream, ids, shape, step=key)


@dataclass(frozen=True, kw_only=True)
class SampleState:
    """One reverse step: from t to s, the clean images it believed in, and the state it reached.

    x_t: (N, C, H, W), the state reached, at timestep s; the images when s is 0.
    x0_hat: (N, C, H, W), the network's estimate of the images at t, clipped if that was asked for.
    t, s: T times the time; ints where they are whole timesteps.
    """

    x_t: Tensor
    x0_hat: Tensor
    t: float
    s: float


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

    The equation is in samplers.py, with noise_hat = (x_t - alpha_t x0_hat) / sigma_t.

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
    return ddim_move(Denoised(x0_hat=x0_hat, noise_hat=noise_hat), now, then, eta, noise)


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
    method: Method | None = None,
    guiding: Guiding | None = None,
    start: Start | None = None,
    draws: Draws | None = None,
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
        method=method,
        guiding=guiding,
        start=start,
        draws=draws,
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
    method: Method | None = None,
    guiding: Guiding | None = None,
    start: Start | None = None,
    draws: Draws | None = None,
) -> Iterator[SampleState]:
    """The steps of the reverse process, each once it is done; the last one has s = 0.

    network: (x_t (N, C, H, W) float32, time (N,) float32, labels (N,) or None) -> (N, C, H, W).
    ids: int64 (N,), global image numbers; everything happens on their device.
    image_shape: (C, H, W).  labels: int64 (N,) or None.
    reverse_stride: timesteps a step; or num_steps: as many steps, spaced as method says.
    ddim_eta: in [0, 1]; 1 is DDPM.  Of the ddim sampler alone.
    guidance, null_label, guiding: as in guidance.py; guidance 1 is off.
    clip_denoise: keep x0_hat in [-1, 1]; recompute_noise_after_clip then makes noise_hat fit it
        (as Ho et al. 2020 do), otherwise it stays as predicted.
    constrain: (x_s, level of s, ids) -> x_s, applied to every state, the first too; inpainting.
    draws: all noise of the walk; None: keyed(seed).

    Raises ValueError, before the first step, for arguments that are impossible or contradict.
    """
    method, start = method or Method(), start or Start()
    path = levels(
        schedule,
        spacing=method.spacing,
        num_steps=num_steps,
        reverse_stride=reverse_stride,
        between=method.between,
    )
    _check(schedule, pred_type, ddim_eta, clip_denoise, method)
    walk = _Walk(
        estimate=Estimator(
            network=guided(network, labels, len(ids), guidance, null_label, guiding or Guiding()),
            pred_type=pred_type,
            clips=clip_denoise,
            dynamic_threshold=method.dynamic_threshold,
            recomputes_noise=recompute_noise_after_clip,
        ),
        path=part_below(path, start.time),
        method=method,
        eta=ddim_eta,
        draws=draws or keyed(seed),
        ids=ids,
        image_shape=tuple(image_shape),
        constrain=constrain or (lambda x_s, level, ids: x_s),
    )
    return walk.steps(start)


@dataclass(frozen=True, kw_only=True)
class _Walk:
    """The reverse process with all its choices made."""

    estimate: Estimator
    path: list[Level]
    method: Method
    eta: float
    draws: Draws
    ids: Tensor
    image_shape: tuple[int, ...]
    constrain: Constrain

    @torch.no_grad()
    def steps(self, start: Start) -> Iterator[SampleState]:
        step = SAMPLERS[self.method.sampler]
        x_t = self.constrain(self.first(start), self.path[0], self.ids)
        before = None
        for now, end in pairwise(self.path):
            for visit in range(1 if end.is_clean else 1 + self.method.resamples):
                then = end.again(visit)
                if visit > 0:
                    back = renoised(x_t, then, now, self.draw(Stream.RESAMPLE, then))
                    # What was estimated before led to another x_t than this one.
                    x_t, before = self.constrain(back, now.again(visit), self.ids), None
                estimate = self.estimate(x_t, now)
                move = Move(
                    estimate=estimate,
                    now=now,
                    then=then,
                    draw=partial(self.draw, Stream.STEP_NOISE, then),
                    ask=self.estimate,
                    before=before,
                    eta=self.eta,
                    x0_variance=self.method.x0_variance,
                )
                x_t, before = self.constrain(step(move), then, self.ids), (now, estimate)
                yield SampleState(x_t=x_t, x0_hat=estimate.x0_hat, t=now.t, s=then.t)

    def first(self, start: Start) -> Tensor:
        level = self.path[0]
        noise = self.draws(Stream.X_T, self.ids, self.image_shape, 0)
        if start.x0 is None:
            return noise
        if start.x0.shape != noise.shape:
            raise ValueError(f"the start is {tuple(start.x0.shape)}; give an image for every id")
        return diffuse(start.x0.float(), noise, level.alpha, level.sigma)

    def draw(self, stream: Stream, level: Level) -> Tensor:
        return self.draws(stream, self.ids, self.image_shape, level.key)


def _level_at(schedule: NoiseSchedule, t: Tensor) -> Level:
    """Timesteps t, (N,) or one, as levels of a single step."""
    alpha, sigma = schedule.alpha_sigma_at(t)
    return Level(time=0, t=0, alpha=alpha, sigma=sigma, logsnr=schedule.logsnr_at(t), key=0)


def _check(
    schedule: NoiseSchedule, pred_type: str, eta: float, clips: bool, method: Method
) -> None:
    check_choice("pred_type", pred_type, PRED_TYPES)
    _check_eta(eta)
    if eta != 0 and method.sampler != "ddim":
        raise ValueError(f"eta is {eta} but sampler is {method.sampler}; eta belongs to ddim")
    if method.dynamic_threshold is not None and not clips:
        raise ValueError("dynamic_threshold is given but clip_denoise is off; give both or neither")
    if pred_type == "noise" and schedule.logsnr_range[0] == -math.inf:
        raise ValueError(
            "pred_type is noise but the schedule ends at zero SNR, where noise says nothing about"
            " the image; predict image or velocity"
        )


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


# --------
# How uncertain x0 is at a noise level: Var(x0 | x_t), as a run's evaluation measured it.
#
# The mean squared error of x0_hat, by level of log SNR, is the variance of x0 given x_t where the
# network is ideal, and above it elsewhere. Between levels its logarithm is linear in logsnr; outside
# them it is held constant.

FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class X0Variance:
    """levels: log SNRs, ascending.  mse: of an element of x0_hat in [-1, 1], positive, at each."""

    levels: tuple[float, ...]
    mse: tuple[float, ...]

    def __call__(self, logsnr: float) -> float:
        """The variance of an element of x0 at this logsnr."""
        levels, mse = self.levels, self.mse
        if logsnr <= levels[0]:
            return mse[0]
        for i in range(1, len(levels)):
            if logsnr <= levels[i]:
                share = (logsnr - levels[i - 1]) / (levels[i] - levels[i - 1])
                return math.exp((1 - share) * math.log(mse[i - 1]) + share * math.log(mse[i]))
        return mse[-1]


def read_x0_variance(run: Path) -> X0Variance:
    """That of a run's averaged network.  Raises InputError where it was not measured."""
    path = run / FILE
    if not path.is_file():
        raise InputError(
            f"IMAGE_GENERATION.SAMPLER is analytic but {path} is not there, whose errors it needs; "
            f"finish the training (python launch/train.py {run / 'training_config.yaml'}), which "
            "evaluates where there are validation images, or give another SAMPLER"
        )
    try:
        facts = json.loads(path.read_text())
        found = {
            float(level): float(mse)
            for level, mse in zip(facts["levels"], facts["mse"], strict=True)
            if mse is not None and mse > 0
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; evaluate the run again") from None
    if not found:
        raise InputError(
            f"IMAGE_GENERATION.SAMPLER is analytic but {path} has no error that is finite and "
            "above 0; give another SAMPLER"
        )
    levels = tuple(sorted(found))
    return X0Variance(levels=levels, mse=tuple(found[level] for level in levels))
