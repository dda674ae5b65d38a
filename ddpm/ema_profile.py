"""The power function as the profile of an average of weights, its length a share of the training.

    theta_ema(t) <- beta(t) theta_ema(t - 1) + (1 - beta(t)) theta(t),
    beta(t) = (1 - 1/t)^(gamma + 1),   t = 1, 2, ...        (Karras et al. 2024, EDM2, Eq. 127)

theta(k) has the weight (k^p - (k - 1)^p) / t^p with p = gamma + 1 in theta_ema(t): the average
grows with the training, forgets the initial weights at once and needs no warm-up. Its length is
named by sigma_rel, the standard deviation of k over t; a decay d is about 1 / ((1 - d) t) long.
No torch.
"""

# sigma_rel of the even average, gamma = 0; beyond it old weights would weigh more than new ones.
LONGEST = 12**-0.5


def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile with this relative standard deviation, positive.

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
    """The relative standard deviation of a profile: the inverse of gamma_of."""
    return float((gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5))


def beta_at(gamma: float, step: int) -> float:
    """beta at optimizer step `step` (from 0, so t = step + 1); 0 at the first."""
    return float((1.0 - 1.0 / (step + 1)) ** (gamma + 1.0))


def name_of(sigma_rel: float) -> str:
    """What the average is called in a checkpoint: "power-0.05"."""
    return f"power-{sigma_rel:g}"
