"""Window of log SNR over which errors are averaged: where the data leave something to decide.

It belongs to the data alone and is fixed before anything is trained, so that no cell of a sweep
changes what the others are compared by. Of the same images: their standard deviation, sigma_data.
"""

from math import prod

import numpy as np
import torch
from torch import Tensor

from ddpm.config import Training
from ddpm.data import Dataset
from ddpm.distributed import ALONE, Group
from ddpm.errors import InputError
from ddpm.metrics.x0_error import RESOLVED_SHARES

# Of images of more than so many values a few are enough: the smaller of the two Gram matrices is
# diagonalised.
_MANY_VALUES = 4096
_MOST_FITTED, _FEW_FITTED = 10_000, 2048
_BATCH = 256

LogSnrWindow = tuple[int, int]


def resolved_window(variance: Tensor) -> LogSnrWindow:
    """The lowest and the highest integer of log SNR at which there is something to decide.

    Those where the best linear estimator resolves from 1 to 99 % of the data's variance:

        F(l) = sum_i c_i sigmoid(l + ln c_i) / sum_i c_i

    Direction i is resolved around l = -ln c_i, where its signal equals the noise. Below the window
    the best estimate is the mean, above it the image as it is given, whatever the network.

    variance: (D,) eigenvalues c_i of the covariance; all 0 (images that do not vary) count as 1.
    """
    seen = variance[variance > 0].double()
    seen = seen if len(seen) else torch.ones(1, dtype=torch.float64)
    ends = [-float(one.log()) for one in (seen.max(), seen.min())]
    levels = torch.arange(int(ends[0]) - 6, int(ends[1]) + 7)
    share = torch.sigmoid(levels[:, None] + seen.log()) @ seen / seen.sum()
    inside = levels[(share >= RESOLVED_SHARES[0]) & (share <= RESOLVED_SHARES[1])]
    return int(inside[0]), int(inside[-1])


def data_window(data: Dataset, group: Group = ALONE) -> LogSnrWindow:
    """resolved_window() of the training images: the same for every schedule, network and seed.

    The covariance is that of at most 10,000 training images; 2,048 of more than 4,096 values.
    group: workers that all call this; rank 0 computes.
    """
    low, high = resolved_window(_variance(data)) if group.is_main else (0, 0)
    return group.agree(low), group.agree(high)


def data_deviation(data: Dataset, group: Group = ALONE) -> float:
    """sigma_data: the standard deviation of the values of all training images about their one mean.

        c_in^2 Var(y + n) = 1,  Var(y + n) = sigma_data^2 + sigma^2  (Karras et al. 2022, App. B.6)

    where y, n and F are one value each, of any pixel and channel, and c_in has no offset. Over the
    images of data_window(); 0 where every value is the same.  group: as there.
    """
    return group.numbers(1, lambda _: _deviation(data))[0]


def sigma_data_of(training: Training, data: Dataset, group: Group = ALONE) -> float | None:
    """data_deviation() of the training images where edm needs it, else None.

    group: workers that all call this.  Raises InputError where the images do not vary.
    """
    key = next((key for key in ("PRED_TYPE", "LOSS_SPACE") if getattr(training, key) == "edm"), "")
    if not key:
        return None
    deviation = data_deviation(data, group)
    if not deviation > 0:
        raise InputError(
            f"TRAINING.{key} is edm but every value of every training image is the same, so that "
            "sigma_data, their standard deviation, is 0; give velocity, or images that vary"
        )
    return deviation


def _deviation(data: Dataset) -> float:
    count, total, squares, first = 0, 0.0, 0.0, None
    for ids in _fitted(data).split(_BATCH):
        values = data.read(ids).images.double().numpy()  # whose sums do not depend on threads
        first = float(values.flat[0]) if first is None else first
        values = values - first  # so that what does not vary is exactly 0
        count += values.size
        total += float(values.sum())
        squares += float(np.square(values).sum())
    return max(0.0, squares / count - (total / count) ** 2) ** 0.5


def _fitted(data: Dataset) -> Tensor:
    """Ids of the training images that stand for all."""
    ids = data.order(torch.arange(data.num_train)).sort().values
    most = _MOST_FITTED if prod(data.image_shape) <= _MANY_VALUES else _FEW_FITTED
    if len(ids) > most:  # evenly, since data may be sorted by class
        ids = ids[torch.arange(most) * len(ids) // most]
    return ids


def _variance(data: Dataset) -> Tensor:
    """Eigenvalues of the training images' covariance that are not 0 for certain."""
    images = data.read(_fitted(data)).images.flatten(1).double()
    images -= images.mean(dim=0)
    n, dimension = images.shape
    gram = images.T @ images if dimension <= n else images @ images.T
    values = torch.linalg.eigvalsh(gram / n).clamp_min(0)
    # What is left of a direction without variance is rounding.
    return values[values > 1e-12 * values.max()]
