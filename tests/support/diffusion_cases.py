"""Cases shared by the tests of diffusion and sampling, and networks with a closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddpm.diffusion.philox import Stream, normal, uniform
from ddpm.diffusion.process import PRED_TYPES, convert_prediction, input_scale, per_sample
from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule

T = 100
SIGMA_DATA = 0.4  # of edm
PLAIN_TYPES = PRED_TYPES[:3]  # whose networks are given x_t itself
SHAPE = (2, 3, 3)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
every_pred_type = pytest.mark.parametrize("pred_type", PRED_TYPES)
every_plain_type = pytest.mark.parametrize("pred_type", PLAIN_TYPES)
every_eta = pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 0.8, 1.0])


def images(n: int, seed: int = 0) -> torch.Tensor:
    """Uniform in [-1, 1], float64 (n, 2, 3, 3)."""
    return 2 * uniform(seed, Stream.EVAL, torch.arange(n), SHAPE) - 1


def noises(n: int, seed: int = 0) -> torch.Tensor:
    return normal(seed, Stream.NOISE, torch.arange(n), SHAPE).double()


def every_t(schedule: NoiseSchedule) -> torch.Tensor:
    return torch.arange(1, schedule.num_timesteps + 1)


def all_pairs(num_timesteps: int) -> tuple[Tensor, Tensor]:
    t, s = torch.tril_indices(num_timesteps + 1, num_timesteps + 1, offset=-1)
    return t, s


def constant(value: float, like: Tensor) -> Tensor:
    return torch.full((len(like),), value, dtype=torch.float64)


def affine_network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
    """Exact operations on single elements: its bits cannot depend on the batch."""
    return 0.25 * x_t + time.view(-1, 1, 1, 1)


def state_given(given: Tensor, alpha: Tensor, sigma: Tensor, pred_type: str) -> Tensor:
    """x_t of what a network of this type is given, float64."""
    scale = input_scale(pred_type, alpha, sigma, SIGMA_DATA)
    return given.double() / per_sample(scale, given.double())


def ideal_network(schedule: NoiseSchedule, data: Tensor, pred_type: str) -> Callable:
    """The optimal prediction for a finite data set: a softmax over its images (M, C, H, W).

    For SIGMA_DATA, whatever the set's own.
    """
    points = data.double().flatten(1)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(time)
        x_t = state_given(x_t, alpha, sigma, pred_type)
        x = x_t.flatten(1)
        distances = ((x[:, None] - alpha[:, None, None] * points) ** 2).sum(2)  # (N, M)
        weights = torch.softmax(-distances / (2 * sigma[:, None] ** 2), dim=1)
        x0_hat = (weights @ points).view_as(x_t)
        return convert_prediction(x0_hat, x_t, alpha, sigma, "image", pred_type, SIGMA_DATA).float()

    return network


def corners() -> Tensor:
    """Five images of 1 x 2 x 2 far from each other."""
    return torch.tensor(
        [[1, 1, 1, 1], [-1, -1, 1, 1], [1, -1, -1, 1], [-1, 1, -1, -1], [0, 0, 0, 0]]
    ).view(5, 1, 2, 2)
