"""Two curves that belong to the data alone, against which every trial's x0-error is read.

Gaussian fit: the best linear estimator, on the validation pairs that trials are measured on.
Memorisation: the ideal denoiser of the training set itself, on training pairs. Both in closed form,
once for a whole sweep; neither is told the class.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm import durable, noise
from ddpm.dataset import Batch, Dataset
from ddpm.noise import Stream


@dataclass(frozen=True, kw_only=True)
class References:
    """Two curves that belong to the data alone, MSE by log-SNR level; None where not computed."""

    levels: tuple[int, ...]
    gaussian: tuple[float, ...] | None
    memorisation: tuple[float, ...] | None
    num_train: int


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


# The Gaussian fit diagonalises a D x D matrix: 4096 values take about 10 s on two cores.
_GAUSSIAN_LIMIT = 4096


def write_references(
    folder: Path,
    data: Dataset,
    *,
    seed: int,
    num: int,
    levels: Sequence[int] = tuple(range(-12, 13)),
    num_train: int = 10_000,
    num_images: int = 100,
) -> References:
    """Both reference lines of `data` and some of its validation images, written once in `folder`.

    num: pairs of each line, as in EVALUATION.NUM.  num_train: at most so many training images are
    fitted and remembered.  Files: references.json, and references.npz with images uint8
    (N, H, W, C) and labels.
    """
    known = {"format": 1, "data_sha256": data.sha256, "seed": seed, "pairs": num}
    path = folder / "references.json"
    if path.exists():
        saved = json.loads(path.read_text())
        if known.items() <= saved.items():
            return _references(saved)
    ids = data.order(torch.arange(min(num_train, data.num_train))).sort().values
    train, validation = data.read(ids, None), data.validation(max(num, num_images))
    lines = References(
        levels=tuple(levels),
        gaussian=_fit_line(train, _first(validation, num), seed, levels),
        memorisation=tuple(
            memorisation(_flat(train.images), *_pairs(_first(train, num), seed), levels)
        ),
        num_train=len(ids),
    )
    _write_pictures(folder / "references.npz", _first(validation, num_images))
    facts = {
        **known,
        "num_train": lines.num_train,
        "levels": list(lines.levels),
        "gaussian": lines.gaussian and list(lines.gaussian),
        "memorisation": lines.memorisation and list(lines.memorisation),
    }
    durable.write_json(path, facts)
    return lines


def _references(saved: dict) -> References:
    return References(
        levels=tuple(saved["levels"]),
        gaussian=saved["gaussian"] and tuple(saved["gaussian"]),
        memorisation=saved["memorisation"] and tuple(saved["memorisation"]),
        num_train=saved["num_train"],
    )


def _fit_line(
    train: Batch, validation: Batch, seed: int, levels: Sequence[int]
) -> tuple[float, ...] | None:
    if train.images[0].numel() > _GAUSSIAN_LIMIT:
        return None
    return tuple(gaussian_fit(_flat(train.images), *_pairs(validation, seed), levels))


def _pairs(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Images and the noise x0_error pairs them with, both (N, D)."""
    draws = noise.normal(seed, Stream.EVAL, batch.ids, tuple(batch.images.shape[1:]))
    return _flat(batch.images), _flat(draws)


def _flat(images: Tensor) -> Tensor:
    return images.flatten(1)


def _alpha_sigma(level: int) -> tuple[float, float]:
    """alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)."""
    return (1 + exp(-level)) ** -0.5, (1 + exp(level)) ** -0.5


def _first(batch: Batch, count: int) -> Batch:
    return Batch(
        images=batch.images[:count],
        labels=None if batch.labels is None else batch.labels[:count],
        ids=batch.ids[:count],
        positions=None,
    )


def _write_pictures(path: Path, batch: Batch) -> None:
    images = ((batch.images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    labels = torch.full((len(images),), -1) if batch.labels is None else batch.labels
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images.cpu().numpy(), labels=labels.cpu().numpy())
    durable.write_bytes(path, buffer.getvalue())
