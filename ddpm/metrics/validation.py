"""A network measured on validation images: during training, at its end, and average by average.

Every trial is measured on the same (validation image, noise) pairs at the same integers of log SNR,
whatever its schedule, its number of timesteps or its prediction type; the time the network is
called with is found by inverting the schedule. What sums them up is a mean over the window that the
data fix (window.py), whatever other trials there are. The noise of a pair is keyed by (seed, EVAL,
sample id), the same at every level. Nothing is clipped; conversions are float64, never under
autocast.

Beside them stand two ideal denoisers in closed form, which belong to the data alone and know no
class: the best linear one, and the one that remembers the training set.
"""

import io
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddpm import config as configuration
from ddpm.config import Config
from ddpm.data import Batch, Dataset, open_data
from ddpm.diffusion import (
    LogSnrDensity,
    NoiseSchedule,
    Stream,
    convert_prediction,
    fit_profile,
    loss_weight,
    philox,
    power_ema_name,
)
from ddpm.distributed import ALONE, Group, device_of
from ddpm.metrics.bits_per_dim import (
    BOUND_STEPS,
    BYTES,
    NOT_BYTES,
    Bound,
    bound_timesteps,
    denoised,
    variational_bound,
)
from ddpm.metrics.request import ema_curve_run
from ddpm.metrics.window import LogSnrWindow, data_window
from ddpm.metrics.x0_error import X0Error, x0_summary
from ddpm.runs import (
    EVALUATION_FILE,
    MAX_PROFILE_ERROR,
    RunDirectory,
    checkpoint,
    load_run,
    logs,
    snapshots,
    storage,
)
from ddpm.sampling import (
    RAW_WEIGHTS,
    Ema,
    LoadedModel,
    Network,
    PowerEma,
    load_network,
    to_uint8,
)

# Beyond these a level says nothing: the image is all noise, or its noise far below a grey value.
LOWEST, HIGHEST = -20, 16
REFERENCE_LEVELS = tuple(range(-12, 13))
# The Gaussian fit diagonalises a D x D matrix: 4096 values take about 10 s on two cores.
_GAUSSIAN_LIMIT = 4096
_MOST_REMEMBERED, _IMAGES_KEPT = 10_000, 100  # of the reference curves, beside them
# Images go through the network in batches of one size, whoever measures them: numbers have the same
# bits for any number of workers. The last batch is filled up with its last image.
BATCH = 16
EMA_LENGTHS = (0.01, 0.25)  # sigma_rel of the shortest and the longest average of ema_curve


def logsnr_levels(schedule: NoiseSchedule) -> tuple[int, ...]:
    """The integers of log SNR that `schedule` passes through, from t = T to t = 1, ascending."""
    low, high = schedule.logsnr_range
    first = math.ceil(low) if math.isfinite(low) else LOWEST
    last = math.floor(high) if math.isfinite(high) else HIGHEST
    return tuple(range(max(first, LOWEST), min(last, HIGHEST) + 1))


@lru_cache(maxsize=256)  # a sweep asks again whenever it adds a trial
def training_weights(config: Config) -> dict[int, float]:
    """Weight that the training loss puts on the x0-error around each integer of log SNR.

        E over l ~ p of w(l) mse_S(l) = integral p(l) w(l) (d pred / d x0)^2 mse_x0(l) dl

    with p the density of log SNR in training, w the weight in the loss space S, and mse_S the
    squared error there, whose state is given (Kingma & Gao 2023, section 3): integrated over the
    half units around each level, for a squared error. Empty where S depends on the data, or its
    conversion has a floor.
    """
    training = config.TRAINING
    space = training.LOSS_SPACE or training.PRED_TYPE
    if training.LOSS_FLOOR is not None:
        return {}
    drawn: NoiseSchedule | LogSnrDensity
    drawn = NoiseSchedule(**configuration.schedule_arguments(config))
    if not training.draws_timesteps:
        drawn = LogSnrDensity(training.LOGSNR_DENSITY, training.DENSITY_PARAMETERS)
    logsnr = drawn.logsnr_at(torch.arange(1, drawn.num_timesteps + 1))
    logsnr = logsnr[logsnr.isfinite()]
    alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    weighted = torch.ones(len(logsnr), dtype=torch.float64)
    if training.WEIGHTED_AS is not None:
        weighted = LogSnrDensity(training.WEIGHTED_AS).weights_of(logsnr)
    one = torch.ones(len(logsnr), 1, dtype=torch.float64)
    try:
        gain = convert_prediction(one, 0 * one, alpha, sigma, "image", space)[:, 0].square()
        weight = (
            weighted
            * gain
            * loss_weight(logsnr, space, training.LOSS_WEIGHTING, gamma=training.MIN_SNR_GAMMA)
        )
    except ValueError:
        return {}
    around = logsnr.round().long()
    return {
        level: float(weight[around == level].sum()) / drawn.num_timesteps
        for level in around.unique().tolist()
    }


def levels_inside(levels: Sequence[int], window: LogSnrWindow) -> tuple[int, ...]:
    """Those of the levels in a window; all of them where none is."""
    inside = tuple(int(level) for level in levels if window[0] <= level <= window[1])
    return inside or tuple(map(int, levels))


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
) -> X0Error:
    """Squared error of the network's x0 estimate, by log-SNR level and (image, noise) pair.

    mse[l, n] = mean over C, H, W of (x0_hat(alpha_l x0_n + sigma_l noise_n) - x0_n)^2

    batch.images: (N, C, H, W) in [-1, 1], on the network's device.  levels inside the schedule's
    range (ValueError otherwise).
    """
    draws = philox.normal(seed, Stream.EVAL, batch.ids, tuple(batch.images.shape[1:]))
    rows = []
    for level in levels:
        logsnr = torch.full_like(batch.ids, level, dtype=torch.float64)
        time, *coefficients = schedule.at_logsnr(logsnr)
        alpha, sigma = (one[0] for one in coefficients)  # all alike
        time = schedule.network_time(time, logsnr)
        errors = []
        for start in range(0, len(batch.ids), batch_size):
            part = slice(start, start + batch_size)
            x0, noise = batch.images[part].double(), draws[part].double()
            labels = None if batch.labels is None else batch.labels[part]
            x0_hat = denoised(
                network, schedule, pred_type, x0, noise, alpha, sigma, time[part], labels
            )
            errors.append((x0_hat - x0).square().flatten(1).mean(dim=1))
        rows.append(torch.cat(errors))
    return X0Error(
        levels=np.asarray(levels, dtype=np.int64),
        mse=torch.stack(rows).cpu().numpy() if rows else np.zeros((0, len(batch.ids))),
        ids=batch.ids.cpu().numpy(),
    )


def metrics_of(error: X0Error, window: LogSnrWindow) -> dict[str, float]:
    """val_mean_log10_mse and val_snr_weighted_mse, over the window's levels that there are.

    None without a level.
    """
    levels = levels_inside(error.levels.tolist(), window)
    if not levels:  # a schedule too short to pass any integer
        return {}
    return {f"val_{measure}": value for measure, (value, _) in x0_summary(error, levels).items()}


def validation_metrics(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    data: Dataset,
    window: LogSnrWindow,
    group: Group = ALONE,
) -> dict[str, float]:
    """metrics_of() the first EVALUATION.NUM validation images; empty where there are none.

    window: data_window().  group: workers that all call this; each measures its
    share and all get the numbers of all.
    """
    ids, levels = data.validation_ids(config.EVALUATION.NUM), logsnr_levels(schedule)
    if not len(ids):
        return {}
    batches = -(-len(ids) // BATCH)
    rows = torch.arange(batches * BATCH).clamp(max=len(ids) - 1).view(batches, BATCH)
    # Batch k is the k // size of worker k % size; those with fewer have zeros at the end.
    most = -(-batches // group.size)
    own = torch.zeros(most, len(levels), BATCH, dtype=torch.float64, device=group.device)
    was_training = network.training
    network.eval()
    try:
        for row, places in enumerate(rows[group.rank :: group.size]):
            batch = data.read(ids[places]).to(group.device)
            error = _x0_error(network, schedule, config, batch, levels)
            own[row] = torch.from_numpy(error.mse)
    finally:
        network.train(was_training)
    parts = group.gather(own).transpose(0, 1).flatten(0, 1)[:batches]  # (batches, L, BATCH)
    mse = parts.transpose(0, 1).flatten(1).cpu().numpy()[:, : len(ids)]
    error = X0Error(levels=np.asarray(levels, np.int64), mse=mse, ids=ids.numpy())
    return metrics_of(error, window)


def _x0_error(
    network: nn.Module,
    schedule: NoiseSchedule,
    config: Config,
    batch: Batch,
    levels: Sequence[int],
) -> X0Error:
    """measure_x0_error() as a configuration has it."""
    return measure_x0_error(
        network,
        schedule,
        _as_trained(batch, config),
        pred_type=config.TRAINING.PRED_TYPE,
        levels=levels,
        seed=config.EVALUATION.SEED,
    )


def _as_trained(batch: Batch, config: Config) -> Batch:
    """Without labels where the network has no classes."""
    return batch if config.TRAINING.NETWORK.NUM_CLASSES is not None else batch._replace(labels=None)


def evaluate_run(folder: Path, data: Dataset, window: LogSnrWindow) -> dict[str, float]:
    """Measures a run's EMA network; writes evaluation.json and evaluation.npz into the run.

    window: data_window().  Returns metrics_of()'s numbers, for the run's summary; none
    without validation images.
    """
    if not data.num_validation:
        return {}
    model = load_network(folder)
    config, schedule = model.config, model.schedule
    images = data.validation(config.EVALUATION.NUM)
    batch = images.to(device_of(model.network))
    error = _x0_error(model.network, schedule, config, batch, logsnr_levels(schedule))
    bound = None
    if BYTES.holds(images.images):
        bound = variational_bound(
            model.network,
            schedule,
            _as_trained(batch, config),
            pred_type=config.TRAINING.PRED_TYPE,
            timesteps=bound_timesteps(schedule, BOUND_STEPS),
            seed=config.EVALUATION.SEED,
        )
    write_evaluation(folder, model, error, data.sha256, window, bound)
    return metrics_of(error, window)


def write_evaluation(
    folder: Path,
    model: LoadedModel,
    error: X0Error,
    data_sha256: str,
    window: LogSnrWindow,
    bound: Bound | None,
) -> None:
    """evaluation.npz (every pair), then evaluation.json (the curve and its conditions).

    bound: on bits/dim; None where the images are not bytes. A diverged network's error is null.
    """
    mean, spread = error.curve()
    buffer = io.BytesIO()
    np.savez(buffer, levels=error.levels, mse=error.mse, ids=error.ids)
    storage.write_bytes(folder / "evaluation.npz", buffer.getvalue())
    facts = {
        "format": 1,
        "step": model.step,
        "weights": model.name,
        "seed": model.config.EVALUATION.SEED,
        "pairs": int(error.mse.shape[1]),
        "data_sha256": data_sha256,
        "is_beta_defined": model.schedule.is_beta_defined,
        "window": list(window),
        "levels": [int(level) for level in error.levels],
        "mse": mean.tolist(),
        "mse_evaluation_error": spread.tolist(),
        "bits_per_dim": {"value": None, "reason": NOT_BYTES} if bound is None else bound.facts(),
    }
    storage.write_json(folder / EVALUATION_FILE, logs.without_nan(facts))


def gaussian_fit(train: Tensor, x0: Tensor, draws: Tensor, levels: Sequence[int]) -> list[float]:
    """MSE at each level of the best linear estimator: the Wiener filter of the training data.

    For data N(mean, U diag(c) U^T):
        x0_hat = mean + U diag(alpha c / (alpha^2 c + sigma^2)) U^T (x_t - alpha mean)

    train: (n, D) whose mean and covariance are fitted.  x0, draws: (N, D), the pairs measured.
    """
    mean = train.double().mean(dim=0)
    variance, basis = torch.linalg.eigh(torch.cov(train.double().T, correction=0))
    variance = variance.clamp_min(0)
    signal, noise_part = (x0.double() - mean) @ basis, draws.double() @ basis
    errors = []
    for alpha, sigma in map(_alpha_sigma, levels):
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        estimate = gain * (alpha * signal + sigma * noise_part)
        errors.append(float((estimate - signal).square().mean()))
    return errors


def memorisation(train: Tensor, x0: Tensor, draws: Tensor, levels: Sequence[int]) -> list[float]:
    """MSE at each level of the ideal denoiser of a finite training set, which only remembers.

    x0_hat = sum_i w_i x_i,   w = softmax_i(-|x_t - alpha x_i|^2 / (2 sigma^2))
                                                            (Karras et al. 2022, App. B.3)

    train: (n, D), all that is remembered.  x0, draws: (N, D), training pairs.
    """
    train, x0, draws = train.double(), x0.double(), draws.double()
    from_image, from_noise = x0 @ train.T, draws @ train.T  # (N, n) both
    energy = train.square().sum(dim=1)  # (n,)
    errors = []
    for alpha, sigma in map(_alpha_sigma, levels):
        similar = alpha * (alpha * from_image + sigma * from_noise) - alpha**2 * energy / 2
        weights = torch.softmax(similar / sigma**2, dim=1)
        errors.append(float((weights @ train - x0).square().mean()))
    return errors


def _alpha_sigma(level: int) -> tuple[float, float]:
    """alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
    return (1 + math.exp(-level)) ** -0.5, (1 + math.exp(level)) ** -0.5


def write_references(folder: Path, data: Dataset, *, seed: int, num: int) -> dict[str, Any]:
    """Both curves of `data` and some of its validation images, written once in `folder`.

    num: pairs of each curve, as in EVALUATION.NUM.  At most 10,000 training images are fitted and
    remembered.  Returns the content of references.json: levels, gaussian (None for large images),
    memorisation, num_train. references.npz: images uint8 (N, H, W, C) and labels.
    """
    known = {"format": 1, "data_sha256": data.sha256, "seed": seed, "pairs": num}
    path = folder / "references.json"
    if path.exists():
        saved: dict[str, Any] = json.loads(path.read_text())
        if known.items() <= saved.items():
            return saved

    def pairs(batch: Batch) -> tuple[Tensor, Tensor]:
        """The first images and the noise that x0_error pairs them with, both (N, D)."""
        draws = philox.normal(seed, Stream.EVAL, batch.ids[:num], tuple(batch.images.shape[1:]))
        return batch.images[:num].flatten(1), draws.flatten(1)

    ids = data.order(torch.arange(min(_MOST_REMEMBERED, data.num_train))).sort().values
    train, validation = data.read(ids, None), data.validation(max(num, _IMAGES_KEPT))
    flat, gaussian = train.images.flatten(1), None
    if flat.shape[1] <= _GAUSSIAN_LIMIT:
        gaussian = gaussian_fit(flat, *pairs(validation), REFERENCE_LEVELS)
    facts = {
        **known,
        "num_train": len(ids),
        "levels": list(REFERENCE_LEVELS),
        "gaussian": gaussian,
        "memorisation": memorisation(flat, *pairs(train), REFERENCE_LEVELS),
    }
    images, labels = validation.images[:_IMAGES_KEPT], validation.labels
    labels = torch.full((len(images),), -1) if labels is None else labels[:_IMAGES_KEPT]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=to_uint8(images).cpu().numpy(), labels=labels.cpu().numpy())
    storage.write_bytes(folder / "references.npz", buffer.getvalue())
    storage.write_json(path, facts)
    return facts


def ema_curve(run: Path, num: int = 12, *, dry: bool = False) -> None:
    """A run's two x0-error numbers by the length of the average its weights are.

    Prints them and writes ema_curve.json. `num` lengths are reconstructed from the run's snapshots
    at its last checkpoint, beside those that training kept. A length is chosen on the images it is
    measured on, so the best of many is a little too good.  dry: only the lengths that could be
    made.  Raises InputError without snapshots, checkpoint or validation images.
    """
    folder = ema_curve_run(run, num)
    config, steps = load_run(folder), checkpoint.steps(folder / "checkpoints")
    tracked = config.TRAINING.EMA_POWER
    spaced = {float(f"{length:.3g}") for length in np.geomspace(*EMA_LENGTHS, num)}
    there = snapshots(folder, config, steps[-1])
    missing = {s: fit_profile(there, s, steps[-1]).error for s in sorted({*spaced, *tracked})}
    left_out = [length for length, error in missing.items() if error > MAX_PROFILE_ERROR]
    if dry:
        made = ", ".join(f"{length:g}" for length in missing if length not in left_out)
        print(f"would measure averages of length {made} and those kept; nothing was written")
        return
    averages: list[tuple[str, Ema, float | None]] = [
        *((power_ema_name(s), PowerEma(s), s) for s in missing if s not in left_out),
        *((f"ema-{decay:g}", decay, None) for decay in config.TRAINING.EMA_DECAYS if decay),
        (RAW_WEIGHTS, 0.0, None),
    ]
    directory, model = RunDirectory(folder), load_network(folder, 0.0)
    torch.set_num_threads(directory.threads)
    device = device_of(model.network)
    data = open_data(config, Path(directory.provenance["data_dir"]))
    batch = data.validation(config.EVALUATION.NUM).to(device)
    levels = levels_inside(logsnr_levels(model.schedule), data_window(data))
    points: list[dict[str, Any]] = []
    for name, ema, length in averages:
        network = load_network(model.folder, ema, device=device).network
        found = x0_summary(_x0_error(network, model.schedule, config, batch, levels), levels)
        points.append(
            {
                "weights": name,
                "sigma_rel": length,
                "is_tracked": length is None or length in tracked,
                "fit_error": 0.0 if length is None else missing[length],
                **{
                    f"{measure}{end}": number
                    for measure, numbers in found.items()
                    for end, number in zip(("", "_evaluation_error"), numbers, strict=True)
                },
            }
        )
        print(f"{name:14}", *(f"{measure} {value:.4f}" for measure, (value, _) in found.items()))
    facts = {"format": 1, "step": model.step, "levels": list(levels), "pairs": len(batch.ids)}
    facts |= {"left_out": left_out, "points": points}
    storage.write_json(folder / "ema_curve.json", logs.without_nan(facts))
    print(f"written: {folder / 'ema_curve.json'}")
