"""The reverse process: from noise to images, over any falling sequence of noise levels.

One loop: the network is asked at t, its answer read as an estimate of the clean images and of the
noise (estimate.py), and a sampler (samplers.py) steps to the next level s (spacing.py), until s = 0
where the estimate is the image. eta = 0 is DDIM, eta = 1 the ancestral sampler of DDPM; whatever
eta, x_s has the marginal of the forward process where x0_hat is right.

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

import torch
from torch import Tensor

from ddpm.diffusion import PRED_TYPES, check_choice, check_step, diffuse, noise_from_x0
from ddpm.estimate import Estimate, Estimator
from ddpm.guidance import Guiding, Network, guided
from ddpm.method import Method, Start
from ddpm.noise import Stream, normal
from ddpm.samplers import SAMPLERS, Move, ddim_move, renoised
from ddpm.schedule import NoiseSchedule
from ddpm.spacing import Level, levels
from ddpm.spacing import below as part_below
from ddpm.spacing import reverse_timesteps as reverse_timesteps
from ddpm.spacing import trailing_timesteps as trailing_timesteps

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
    return ddim_move(Estimate(x0_hat=x0_hat, noise_hat=noise_hat), now, then, eta, noise)


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
