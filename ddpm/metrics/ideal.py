"""Ideal denoisers in closed form: two curves against which every trial's x0-error is read.

They belong to the data alone and are computed once for a whole sweep; neither knows the class.
"""

import io
import json
from collections.abc import Sequence
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm.data import Batch, Dataset
from ddpm.diffusion import Stream, philox
from ddpm.runs import storage
from ddpm.sampling import to_uint8

LEVELS = tuple(range(-12, 13))
# The Gaussian fit diagonalises a D x D matrix: 4096 values take about 10 s on two cores.
_GAUSSIAN_LIMIT = 4096


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
    return (1 + exp(-level)) ** -0.5, (1 + exp(level)) ** -0.5


def write_references(
    folder: Path,
    data: Dataset,
    *,
    seed: int,
    num: int,
    levels: Sequence[int] = LEVELS,
    num_train: int = 10_000,
    num_images: int = 100,
) -> dict[str, Any]:
    """Both curves of `data` and some of its validation images, written once in `folder`.

    num: pairs of each curve, as in EVALUATION.NUM.  num_train: at most so many training images are
    fitted and remembered.  Returns the content of references.json: levels, gaussian (None for large
    images), memorisation, num_train. references.npz: images uint8 (N, H, W, C) and labels.
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

    ids = data.order(torch.arange(min(num_train, data.num_train))).sort().values
    train, validation = data.read(ids, None), data.validation(max(num, num_images))
    flat, gaussian = train.images.flatten(1), None
    if flat.shape[1] <= _GAUSSIAN_LIMIT:
        gaussian = gaussian_fit(flat, *pairs(validation), levels)
    facts = {
        **known,
        "num_train": len(ids),
        "levels": list(levels),
        "gaussian": gaussian,
        "memorisation": memorisation(flat, *pairs(train), levels),
    }
    images, labels = validation.images[:num_images], validation.labels
    labels = torch.full((len(images),), -1) if labels is None else labels[:num_images]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=to_uint8(images).cpu().numpy(), labels=labels.cpu().numpy())
    storage.write_bytes(folder / "references.npz", buffer.getvalue())
    storage.write_json(path, facts)
    return facts
