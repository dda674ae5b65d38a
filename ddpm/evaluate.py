"""Evaluation that is comparable across cells: the error of the x0 estimate at fixed log-SNR levels.

Every trial is measured on the same (validation image, noise) pairs at the same integers of log SNR,
whatever its schedule, its number of timesteps or what its network predicts; the time to ask the
network at is found by inverting the schedule. The noise of a pair is keyed by (seed, EVAL, sample
id), the same at every level. Nothing is clipped; conversions are float64, never under autocast.
"""

import io
from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddpm import durable, noise
from ddpm.bits_per_dim import (
    BYTES,
    NOT_BYTES,
    USUAL_STEPS,
    Bound,
    bound_timesteps,
    variational_bound,
)
from ddpm.config import Config
from ddpm.dataset import Batch, Dataset
from ddpm.diffusion import diffuse, x0_from_pred
from ddpm.distributed import device_of
from ddpm.loaded import load_network
from ddpm.measures import MEASURES, X0Error, X0Summary, common_levels, summary
from ddpm.noise import Stream
from ddpm.schedule import NoiseSchedule

__all__ = [
    "X0Error",
    "X0Summary",
    "common_levels",
    "evaluate_run",
    "levels_of",
    "summary",
    "x0_error",
]

# Beyond these a level says nothing: the image is all noise, or its noise far below a grey value.
LOWEST, HIGHEST = -20, 16
# The levels that linear, cosine and cos6 share for 50 timesteps or more.
USUAL_LEVELS = tuple(range(-8, 6))

Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def levels_of(schedule: NoiseSchedule) -> tuple[int, ...]:
    """The integers of log SNR that `schedule` passes through, from t = T to t = 1, ascending."""
    low, high = schedule.logsnr_range
    first = ceil(low) if isfinite(low) else LOWEST
    last = floor(high) if isfinite(high) else HIGHEST
    return tuple(range(max(first, LOWEST), min(last, HIGHEST) + 1))


@torch.no_grad()
def x0_error(
    network: Network,
    schedule: NoiseSchedule,
    batch: Batch,
    *,
    pred_type: str,
    levels: Sequence[int],
    seed: int,
    batch_size: int = 256,
    labels: bool = True,
) -> X0Error:
    """Squared error of the network's x0 estimate, by log-SNR level and (image, noise) pair.

    mse[l, n] = mean over C, H, W of (x0_hat(alpha_l x0_n + sigma_l noise_n) - x0_n)^2

    batch.images: (N, C, H, W) in [-1, 1], on the network's device.  levels inside the schedule's
    range (ValueError otherwise).  labels: give the network batch.labels, where there are any.
    """
    shape = tuple(batch.images.shape[1:])
    draws = noise.normal(seed, Stream.EVAL, batch.ids, shape)
    wanted = batch.labels if labels else None
    rows = []
    for level in levels:
        time = schedule.time_from_logsnr(torch.full_like(batch.ids, level, dtype=torch.float64))
        alpha, sigma = schedule.alpha_sigma(time)  # (N,), all alike
        errors = []
        for start in range(0, len(batch.ids), batch_size):
            part = slice(start, start + batch_size)
            x0 = batch.images[part].double()
            # The estimate is judged on what the network was given: x_t rounded to float32.
            given = diffuse(x0, draws[part].double(), alpha[part], sigma[part]).float()
            given_labels = None if wanted is None else wanted[part]
            pred = network(given, time[part].float(), given_labels)
            with torch.autocast(x0.device.type, enabled=False):
                x0_hat = x0_from_pred(
                    pred.double(), given.double(), alpha[part], sigma[part], pred_type
                )
                errors.append((x0_hat - x0).square().flatten(1).mean(dim=1))
        rows.append(torch.cat(errors))
    return X0Error(
        levels=np.asarray(levels, dtype=np.int64),
        mse=torch.stack(rows).cpu().numpy() if rows else np.zeros((0, len(batch.ids))),
        ids=batch.ids.cpu().numpy(),
    )


def evaluate_run(folder: Path, data: Dataset, *, batch_size: int = 256) -> dict[str, float]:
    """Measures a run's EMA network; writes evaluation.json and evaluation.npz into the run.

    Returns metrics_of()'s numbers, for the run's summary; none without validation images.
    """
    if not data.num_validation:
        return {}
    model = load_network(folder)
    error = _validation_error(model.network, model.schedule, model.config, data, batch_size)
    bound = _validation_bound(model.network, model.schedule, model.config, data, batch_size)
    write_evaluation(
        folder,
        error,
        step=model.step,
        weights=model.name,
        seed=model.config.EVALUATION.SEED,
        schedule=model.schedule,
        data_sha256=data.sha256,
        bound=bound,
    )
    return metrics_of(error)


def _validation_error(
    network: nn.Module, schedule: NoiseSchedule, config: Config, data: Dataset, batch_size: int
) -> X0Error:
    was_training = network.training
    network.eval()
    try:
        return x0_error(
            network,
            schedule,
            data.validation(config.EVALUATION.NUM).to(device_of(network)),
            pred_type=config.TRAINING.PRED_TYPE,
            levels=levels_of(schedule),
            seed=config.EVALUATION.SEED,
            batch_size=batch_size,
            labels=config.TRAINING.NETWORK.NUM_CLASSES is not None,
        )
    finally:
        network.train(was_training)


def _validation_bound(
    network: nn.Module, schedule: NoiseSchedule, config: Config, data: Dataset, batch_size: int
) -> Bound | None:
    """The bound on bits/dim of a network in eval mode; None where images are not bytes."""
    batch = data.validation(config.EVALUATION.NUM)
    if not BYTES.holds(batch.images):
        return None
    return variational_bound(
        network,
        schedule,
        batch.to(device_of(network)),
        pred_type=config.TRAINING.PRED_TYPE,
        timesteps=bound_timesteps(schedule, USUAL_STEPS),
        seed=config.EVALUATION.SEED,
        batch_size=batch_size,
        labels=config.TRAINING.NETWORK.NUM_CLASSES is not None,
    )


def metrics_of(error: X0Error) -> dict[str, float]:
    """val_mean_log10_mse and val_snr_weighted_mse, over those of the usual levels that there are.

    A report averages over the levels that all its cells share instead. None without a level.
    """
    levels = common_levels([USUAL_LEVELS, error.levels]) or tuple(map(int, error.levels))
    if not levels:  # a schedule too short to pass any integer
        return {}
    numbers = summary(error, levels)
    return {f"val_{measure}": numbers.value(measure) for measure in MEASURES}


def write_evaluation(
    folder: Path,
    error: X0Error,
    *,
    step: int,
    weights: str,
    seed: int,
    schedule: NoiseSchedule,
    data_sha256: str,
    bound: Bound | None = None,
) -> None:
    """evaluation.npz (every pair), then evaluation.json (the curve and what it was measured on).

    bound: on bits/dim; None says that the images have none.
    """
    mean, spread = error.curve()
    buffer = io.BytesIO()
    np.savez(buffer, levels=error.levels, mse=error.mse, ids=error.ids)
    durable.write_bytes(folder / "evaluation.npz", buffer.getvalue())
    facts = {
        "format": 1,
        "step": step,
        "weights": weights,
        "seed": seed,
        "pairs": int(error.mse.shape[1]),
        "data_sha256": data_sha256,
        "is_beta_defined": bool(schedule.is_beta_defined),
        "levels": [int(level) for level in error.levels],
        "mse": _json_numbers(mean),
        "mse_evaluation_error": _json_numbers(spread),
        "bits_per_dim": {"value": None, "reason": NOT_BYTES} if bound is None else bound.facts(),
    }
    durable.write_json(folder / "evaluation.json", facts)


def _json_numbers(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN or infinity: a diverged network's error is null."""
    return [float(value) if np.isfinite(value) else None for value in values]
