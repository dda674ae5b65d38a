"""The measures by which trials are ranked: numbers that do not know which cell they come from.

A training loss is not comparable across cells, since mse(noise) = SNR mse(image) and
mse(velocity) = (SNR + 1) mse(image) per sample. The error of the x0 estimate at a fixed log-SNR,
on fixed (image, noise) pairs, is. Levels are integers of log SNR; the same pairs serve every level
and every trial. Two numbers sum up the curve, since the weighting of levels can pick the winner:

    mean_log10_mse     mean over levels of log10 MSE     every noise level counts alike, by ratio
    snr_weighted_mse   mean over levels of SNR x MSE     the error of the noise; clean end first

A third number is in bits: the part of the variational bound in continuous time that lies between
two log SNRs, which no more depends on the cell than the curve does.

"Evaluation error" is the standard error over the (image, noise) pairs for one trained network. It
says nothing of another training seed: an interval that supports a claim about a cell is over seeds.
numpy only.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import atan, ceil, cos, floor, isfinite, pi, sin, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ddpm.config import Config
from ddpm.data import Batch, Dataset
from ddpm.diffusion import NoiseSchedule, Stream, diffuse, philox, x0_from_pred
from ddpm.distributed import Group, device_of
from ddpm.metrics.bits_per_dim import (
    BYTES,
    NOT_BYTES,
    USUAL_STEPS,
    Bound,
    bound_timesteps,
    variational_bound,
)
from ddpm.runs import storage
from ddpm.sampling import load_network

MEASURES = ("mean_log10_mse", "snr_weighted_mse")


@dataclass(frozen=True, kw_only=True)
class X0Error:
    """Squared error of the x0 estimate, mean over an image's values, by level and pair.

    levels: (L,) integers of log SNR, ascending.  mse: (L, N) float64.  ids: (N,) sample ids.
    """

    levels: np.ndarray
    mse: np.ndarray
    ids: np.ndarray

    def at(self, levels: Sequence[int]) -> np.ndarray:
        """The rows of `mse` at these levels, (len(levels), N); ValueError where there is none."""
        row = {int(level): index for index, level in enumerate(self.levels)}
        missing = [level for level in levels if level not in row]
        if missing:
            raise ValueError(
                f"log-SNR levels {missing} were not evaluated; there are {sorted(row)}"
            )
        return self.mse[[row[level] for level in levels]]

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean over pairs at each level and its evaluation error, both (L,)."""
        return self.mse.mean(axis=1), _standard_error(self.mse)


@dataclass(frozen=True, kw_only=True)
class X0Summary:
    """The two numbers of one trained network over `levels`, each with its evaluation error."""

    levels: tuple[int, ...]
    num_pairs: int
    mean_log10_mse: float
    mean_log10_mse_evaluation_error: float
    snr_weighted_mse: float
    snr_weighted_mse_evaluation_error: float

    def value(self, measure: str) -> float:
        """One of the two numbers by its name in MEASURES."""
        return self.mean_log10_mse if measure == MEASURES[0] else self.snr_weighted_mse

    def evaluation_error(self, measure: str) -> float:
        """Its standard error over pairs."""
        first = measure == MEASURES[0]
        return (
            self.mean_log10_mse_evaluation_error
            if first
            else self.snr_weighted_mse_evaluation_error
        )


def common_levels(levels: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The levels every one of these lists holds, ascending: the only ones averaged over."""
    sets = [{int(level) for level in one} for one in levels]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def summary(error: X0Error, levels: Sequence[int]) -> X0Summary:
    """Both numbers of `error` over `levels`, with their evaluation errors."""
    if not levels:
        raise ValueError("no log-SNR level to average over; the cells share none")
    mean = error.at(levels).mean(axis=1)
    spread = _standard_error(influence(error, levels))
    with np.errstate(divide="ignore"):
        log_mean = float(np.log10(mean).mean())
    return X0Summary(
        levels=tuple(levels),
        num_pairs=error.mse.shape[1],
        mean_log10_mse=log_mean,
        mean_log10_mse_evaluation_error=float(spread[0]),
        snr_weighted_mse=float((np.exp(np.asarray(levels, dtype=np.float64)) * mean).mean()),
        snr_weighted_mse_evaluation_error=float(spread[1]),
    )


@dataclass(frozen=True, kw_only=True)
class ContinuousBound:
    """Bits a dimension that the bound in continuous time spends between two log SNRs.

    Of one trained network, with its evaluation error.
    """

    low: int
    high: int
    num_pairs: int
    value: float
    evaluation_error: float


def continuous_bound(error: X0Error, levels: Sequence[int]) -> ContinuousBound:
    """The variational bound between the lowest and the highest of `levels`, bits a dimension.

    1/2 integral of SNR x MSE over log SNR, / ln 2              (Kingma et al. 2021, Eq. 18)

    levels: consecutive integers, two at least (ValueError otherwise).  Where the lowest is nearly
    pure noise and the highest far below a grey value, what is left out of the whole bound is small.
    """
    values = np.asarray(levels, dtype=np.float64)
    snr_mse = np.exp(values)[:, None] * error.at(levels)
    bits = _integration_weights(values) @ snr_mse / (2 * np.log(2))  # (N,)
    return ContinuousBound(
        low=int(levels[0]),
        high=int(levels[-1]),
        num_pairs=error.mse.shape[1],
        value=float(bits.mean()),
        evaluation_error=float(_standard_error(bits)),
    )


def _integration_weights(levels: np.ndarray) -> np.ndarray:
    """Of values at consecutive integers: the trapezoid's, with Gregory's corrections at both ends.

    The corrections, of third order, need six values.
    """
    if len(levels) < 2 or not (np.diff(levels) == 1).all():
        raise ValueError(
            f"levels are {levels.tolist()}; give two consecutive integers of log SNR or more"
        )
    weights = np.ones(len(levels))
    ends = (3 / 8, 7 / 6, 23 / 24) if len(levels) >= 6 else (1 / 2,)
    for place, weight in enumerate(ends):
        weights[place] = weights[-1 - place] = weight
    return weights


def influence(error: X0Error, levels: Sequence[int]) -> np.ndarray:
    """What each pair contributes to the two numbers, to first order: (2, N).

    Their standard errors are those of the rows' means; the difference of two trials on the same
    pairs has the standard error of the difference of their rows.
    """
    mse = error.at(levels)
    mean = mse.mean(axis=1, keepdims=True)
    snr = np.exp(np.asarray(levels, dtype=np.float64))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(mean > 0, mse / mean, 1.0) / np.log(10)
    return np.stack([relative.mean(axis=0), (snr * mse).mean(axis=0)])


def _standard_error(values: np.ndarray) -> np.ndarray:
    """Standard error of the mean along the last axis; NaN for a single value, which has none."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    return values.std(axis=-1, ddof=1) / np.sqrt(count)


def t_probability(t: float, dof: int) -> float:
    """P(|X| <= t) for Student's t with an integer number of degrees of freedom.

    Finite sums in theta = atan(t / sqrt(dof))          (Abramowitz and Stegun, 26.7.3 and 26.7.4)
    """
    theta = atan(t / sqrt(dof))
    c, s = cos(theta), sin(theta)
    is_even = dof % 2 == 0
    total, term = 0.0, 1.0 if is_even else c
    for k in range(dof // 2):
        total += term
        term *= c * c * ((2 * k + 1) / (2 * k + 2) if is_even else (2 * k + 2) / (2 * k + 3))
    return s * total if is_even else 2 / pi * (theta + s * total)


@lru_cache(maxsize=1024)
def t_quantile(confidence: float, dof: int) -> float:
    """t with P(|X| <= t) = confidence: half-width of a two-sided interval in standard errors."""
    if not 0 < confidence < 1 or dof < 1:
        raise ValueError(
            f"confidence {confidence} must lie in (0, 1) and degrees of freedom {dof} >= 1"
        )
    # Beyond 400 degrees of freedom the sums grow long and the quantile falls by less than 1 %.
    dof = min(dof, 400)
    low, high = 0.0, 1.0
    while t_probability(high, dof) < confidence and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, dof) < confidence else (low, middle)
    return high


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean and half-width of its two-sided confidence interval; NaN half-width for one value."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return float(array.mean()), float("nan")
    error = float(_standard_error(array))
    return float(array.mean()), t_quantile(confidence, array.size - 1) * error


# --------
# Evaluation that is comparable across cells: the error of the x0 estimate at fixed log-SNR levels.
#
# Every trial is measured on the same (validation image, noise) pairs at the same integers of log SNR,
# whatever its schedule, its number of timesteps or what its network predicts; the time to ask the
# network at is found by inverting the schedule. The noise of a pair is keyed by (seed, EVAL, sample
# id), the same at every level. Nothing is clipped; conversions are float64, never under autocast.

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
def measure_x0_error(
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
    draws = philox.normal(seed, Stream.EVAL, batch.ids, shape)
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
        return measure_x0_error(
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
    storage.write_bytes(folder / "evaluation.npz", buffer.getvalue())
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
    storage.write_json(folder / "evaluation.json", facts)


def _json_numbers(values: np.ndarray) -> list[float | None]:
    """JSON has no NaN or infinity: a diverged network's error is null."""
    return [float(value) if np.isfinite(value) else None for value in values]


# --------
# What a network is worth while it trains: its error on validation images, measured by all workers.
#
# Images go through the network in batches of one size, whoever measures them: numbers have the same
# bits for any number of workers. The last batch is filled up with its last image.

BATCH = 16


def validation_metrics(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    data: Dataset,
    group: Group | None = None,
) -> dict[str, float]:
    """metrics_of() the first EVALUATION.NUM validation images; empty where there are none.

    group: workers that all call this; each measures its share and all get the numbers of all.
    """
    group = group or Group()
    ids = data.validation_ids(config.EVALUATION.NUM)
    if not len(ids):
        return {}
    was_training = network.training
    network.eval()
    try:
        own = _errors(network, schedule, config, data, _share(ids, group), group)
    finally:
        network.train(was_training)
    mse = _of_all(own, -(-len(ids) // BATCH), group)[:, : len(ids)]
    levels = np.asarray(levels_of(schedule), dtype=np.int64)
    return metrics_of(X0Error(levels=levels, mse=mse, ids=ids.numpy()))


def _share(ids: Tensor, group: Group) -> Tensor:
    """Every size-th batch from `rank` on, (batches, BATCH)."""
    batches = -(-len(ids) // BATCH)
    rows = torch.arange(batches * BATCH).clamp(max=len(ids) - 1).view(batches, BATCH)
    return ids[rows[group.rank :: group.size]]


def _errors(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    data: Dataset,
    ids: Tensor,
    group: Group,
) -> Tensor:
    """Squared errors, float64 (batches, L, BATCH), on the group's device."""
    levels = levels_of(schedule)
    found = torch.zeros(len(ids), len(levels), BATCH, dtype=torch.float64, device=group.device)
    for row, batch_ids in enumerate(ids):
        error = measure_x0_error(
            network,
            schedule,
            data.read(batch_ids).to(group.device),
            pred_type=config.TRAINING.PRED_TYPE,
            levels=levels,
            seed=config.EVALUATION.SEED,
            labels=config.TRAINING.NETWORK.NUM_CLASSES is not None,
        )
        found[row] = torch.from_numpy(error.mse)
    return found


def _of_all(own: Tensor, batches: int, group: Group) -> np.ndarray:
    """The errors of all workers, (L, batches x BATCH), in the order of the images."""
    most = -(-batches // group.size)
    filled = own.new_zeros(most, *own.shape[1:])
    filled[: len(own)] = own
    parts = group.gather(filled)  # (size, most, L, BATCH); batch k is k // size of worker k % size
    ordered = parts.transpose(0, 1).flatten(0, 1)[:batches]  # (batches, L, BATCH)
    return ordered.transpose(0, 1).flatten(1).cpu().numpy()
