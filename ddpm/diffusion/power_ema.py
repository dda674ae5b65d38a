"""Power-function EMA: the profile of an average of weights, its length a share of the training.

    theta_ema(t) <- beta(t) theta_ema(t - 1) + (1 - beta(t)) theta(t),
    beta(t) = (1 - 1/t)^(gamma + 1),   t = 1, 2, ...        (Karras et al. 2024, EDM2, Eq. 127)

theta(k) has the weight (k^p - (k - 1)^p) / t^p with p = gamma + 1 in theta_ema(t): the average
grows with the training, forgets the initial weights at once and needs no warm-up. Its length is
named by sigma_rel, the standard deviation of k over t; a decay d is about 1 / ((1 - d) t) long.

An average of any length is made after training, from snapshots of the averages that were tracked. A
snapshot's average is the weights over training times a profile p_i. The profile wanted is
approached by sum_i x_i p_i, least squares in time, and the same x_i combine the snapshots:

    min_x  integral (p - sum_i x_i p_i)^2 dt,   sum_i x_i = 1
                                         (Karras et al. 2024, EDM2, section 3.2, Algorithm 3)

The paper scales the sum to 1 afterwards; as a constraint it costs less of the fit. Weights that
stand still are so their own average, however coarse the fit. No torch: a length is checked without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

# sigma_rel of the even average, gamma = 0; beyond it old weights would weigh more than new ones.
LONGEST = 12**-0.5


def power_ema_gamma(sigma_rel: float) -> float:
    """Exponent of the profile with this relative standard deviation, positive.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))       (Karras et al. 2024, Eq. 123)

    Raises ValueError unless 0 < sigma_rel < 12^(-1/2), about 0.2887.
    """
    if not 0 < sigma_rel < LONGEST:
        raise ValueError(
            f"sigma_rel is {sigma_rel:g}; give one above 0 and below {LONGEST:.4f}, the even "
            "average of all steps"
        )
    # sigma_rel falls in gamma and is below 1 / gamma
    low, high = 0.0, 1.0 / sigma_rel
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sigma_rel_of(middle) > sigma_rel else (low, middle)
    return high


def sigma_rel_of(gamma: float) -> float:
    """Relative standard deviation of a profile: the inverse of power_ema_gamma()."""
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def power_ema_beta(gamma: float, step: int) -> float:
    """beta at optimizer step `step` (from 0, so t = step + 1); 0 at the first."""
    return float((1.0 - 1.0 / (step + 1)) ** (gamma + 1.0))


def power_ema_name(sigma_rel: float) -> str:
    """Name of the average in a checkpoint: "power-0.05"."""
    return f"power-{sigma_rel:g}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Tracked average after `step` optimizer steps; load() gives its float32 tensors."""

    step: int
    sigma_rel: float
    load: "Callable[[], Mapping[str, Tensor]]"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Profile as a sum of those of snapshots.

    coefficients: one a snapshot, together 1.  error: root of the integral of the square of the
    difference, over that of the profile's own; 0 is exact.
    """

    coefficients: np.ndarray
    error: float


def fit_profile(snapshots: Sequence[Snapshot], sigma_rel: float, step: int) -> Fit:
    """Coefficients that come nearest the average of length sigma_rel after `step` steps.

    Raises ValueError for a length that no profile has, without snapshots, and for later ones.
    """
    gamma = power_ema_gamma(sigma_rel)
    if not snapshots:
        raise ValueError("there are no snapshots to make an average from")
    late = [snapshot.step for snapshot in snapshots if not 1 <= snapshot.step <= step]
    if late:
        raise ValueError(f"a snapshot is of step {late[0]}; give those of steps 1 to {step}")
    times = np.array([snapshot.step for snapshot in snapshots], dtype=np.float64) / step
    gammas = np.array([power_ema_gamma(snapshot.sigma_rel) for snapshot in snapshots])
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
    """Integral over time of two profiles, (gamma + 1) tau^gamma / t^(gamma + 1) up to t each.

    (gamma_a + 1) (gamma_b + 1) / ((gamma_a + gamma_b + 1) t_late) (t_early / t_late)^gamma_late
                                              (Karras et al. 2024, Eq. 151 and Algorithm 3)
    """
    t_a, gamma_a, t_b, gamma_b = map(np.asarray, (t_a, gamma_a, t_b, gamma_b))
    late, early = np.maximum(t_a, t_b), np.minimum(t_a, t_b)
    exponent = np.where(t_a < t_b, gamma_b, gamma_a)
    height = (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * late)
    return np.asarray(height * (early / late) ** exponent)
