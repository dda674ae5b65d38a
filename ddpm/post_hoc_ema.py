"""An average of any length after training, from snapshots of the averages that were tracked.

A snapshot's average is the weights over training times a profile p_i. The profile wanted is
approached by sum_i x_i p_i, least squares in time, and the same x_i combine the snapshots:

    min_x  integral (p - sum_i x_i p_i)^2 dt,   sum_i x_i = 1

                                         (Karras et al. 2024, EDM2, section 3.2, Algorithm 3)

The paper scales the sum to 1 afterwards; as a constraint it costs less of the fit. Weights that
stand still are so their own average, however coarse the fit.
The sum is taken in float64, one snapshot in memory at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm.ema_profile import gamma_of


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A tracked average after `step` optimizer steps; load() gives its float32 tensors."""

    step: int
    sigma_rel: float
    load: Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How snapshots make a profile.

    coefficients: one a snapshot, together 1.  error: what of the profile they cannot make, the
    root of the integral of its square over that of the profile's own; 0 is exact.
    """

    coefficients: np.ndarray
    error: float


def fit(snapshots: Sequence[Snapshot], sigma_rel: float, step: int) -> Fit:
    """The coefficients that come nearest the average of length sigma_rel after `step` steps.

    Raises ValueError for a length that no profile has, without snapshots, and for later ones.
    """
    gamma = gamma_of(sigma_rel)
    if not snapshots:
        raise ValueError("there are no snapshots to make an average from")
    late = [snapshot.step for snapshot in snapshots if not 1 <= snapshot.step <= step]
    if late:
        raise ValueError(f"a snapshot is of step {late[0]}; give those of steps 1 to {step}")
    times = np.array([snapshot.step for snapshot in snapshots], dtype=np.float64) / step
    gammas = np.array([gamma_of(snapshot.sigma_rel) for snapshot in snapshots])
    # Profiles of unit norm: late and short ones are much higher than early and long ones.
    norms = np.sqrt(profile_product(times, gammas, times, gammas))
    norm = float(np.sqrt(profile_product(1.0, gamma, 1.0, gamma)))
    gram = profile_product(times[:, None], gammas[:, None], times, gammas)
    gram = gram / (norms[:, None] * norms)
    wanted = profile_product(times, gammas, 1.0, gamma) / (norms * norm)
    # x = z norm / norms; sum x = 1
    border = norm / norms
    system = np.block([[gram, border[:, None]], [border[None], np.zeros((1, 1))]])
    z = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=1e-13)[0][:-1]
    squared = 1.0 - 2.0 * z @ wanted + z @ gram @ z
    return Fit(coefficients=z * norm / norms, error=float(np.sqrt(max(squared, 0.0))))


def profile_product(
    t_a: np.ndarray | float,
    gamma_a: np.ndarray | float,
    t_b: np.ndarray | float,
    gamma_b: np.ndarray | float,
) -> np.ndarray:
    """The integral over time of two profiles, (gamma + 1) tau^gamma / t^(gamma + 1) up to t each.

    (gamma_a + 1) (gamma_b + 1) / ((gamma_a + gamma_b + 1) t_late) (t_early / t_late)^gamma_late
                                              (Karras et al. 2024, Eq. 151 and Algorithm 3)
    """
    t_a, gamma_a, t_b, gamma_b = map(np.asarray, (t_a, gamma_a, t_b, gamma_b))
    late, early = np.maximum(t_a, t_b), np.minimum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    height = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * late)
    return np.asarray(height * (early / late) ** exponent)


def reconstruct(
    snapshots: Sequence[Snapshot], sigma_rel: float, step: int | None = None
) -> dict[str, Tensor]:
    """The average of length sigma_rel after `step` steps (None: of the last snapshot), float32.

    Raises ValueError as fit(), and for snapshots of different networks.
    """
    if step is None:
        step = max((snapshot.step for snapshot in snapshots), default=0)
    coefficients = fit(snapshots, sigma_rel, step).coefficients
    total: dict[str, Tensor] = {}
    for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
        tensors = snapshot.load()
        if not total:
            total = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in tensors.items()}
        if total.keys() != tensors.keys():
            names = ", ".join(sorted(total.keys() ^ tensors.keys()))
            raise ValueError(f"snapshots differ in: {names}")
        for name, tensor in tensors.items():
            total[name].add_(tensor.double(), alpha=float(coefficient))
    return {name: tensor.float() for name, tensor in total.items()}
