"""Densities of log SNR in training, apart from the schedule by which images are drawn.

A loss is an expectation over noise levels, E over l ~ p of w(l) mse(l), with l = logsnr: only the
product p(l) w(l) matters to it, p alone to its variance (Kingma et al. 2021, section 5). A schedule
is such a density too, that of logsnr(time) at uniform times.

    uniform       l ~ U(a, b)                                                  Kingma et al. 2021
    logit_normal  flow time sigmoid(a + b z), where snr = ((1 - time) / time)^2:
                  l ~ N(-2 a, (2 b)^2)                                         Esser et al. 2024
    edm           ln(sigma / alpha) ~ N(a, b^2), images in [-1, 1]:
                  l ~ N(-2 a, (2 b)^2)                                         Karras et al. 2022
    laplace       l ~ Laplace(a, b)                                            Hang et al. 2024

with z standard normal and (a, b) the parameters; logit_normal and edm are one family in the words
of two papers. All are truncated to logsnr in [-20, 20], beyond which a state is all image or all
noise.

    adaptive      uniform timesteps, but oftener where the loss is large, and weighted by the
                  quotient of the densities: AdaptiveDensity    Nichol & Dhariwal 2021, section 3.3
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.distributions import Distribution, Laplace, Normal, Uniform

from ddpm.diffusion.schedule import (
    LOGSNR_LIMIT,
    AlphaSigma,
    NoiseSchedule,
    check_choice,
    pair_from_logsnr,
)

# The parameters of the papers; those of uniform hold most of what the schedules pass through.
DENSITIES: dict[str, tuple[float, float]] = {
    "uniform": (-10.0, 10.0),
    "logit_normal": (0.0, 1.0),
    "edm": (-1.2, 1.2),
    "laplace": (0.0, 0.5),
}
NUM_LEVELS = 1 << 16
# Of AdaptiveDensity: the draws of a bin that its mean is over, those that it takes to begin, and
# the share of all draws that stays uniform, so that no weight is above its inverse.
MOST_DRAWS, FEWEST_DRAWS, UNIFORM_SHARE = 1000, 10, 0.1


@dataclass(frozen=True)
class LogSnrDensity:
    """A density of log SNR, and the noise levels of a training that draws from it.

    name: one of DENSITIES.  parameters: (a, b); None is the paper's.

    The levels are t = 1, ..., 65536, all equally likely: level t is the quantile of
    1 - (t - 1/2) / 65536, so logsnr falls with t, as on a schedule. A draw is exact integer
    arithmetic and a look-up, the same bits on every device and at every place of a batch, which
    the logarithms of libraries are not.

    Raises ValueError for an unknown name, impossible parameters, and where nothing lies in
    [-20, 20].
    """

    name: str
    parameters: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_choice("density", self.name, DENSITIES)
        first, second = self._parameters
        if self.name == "uniform" and not first < second:
            raise ValueError(f"uniform is from {first} to {second}; give the lower end first")
        if self.name != "uniform" and not second > 0:
            raise ValueError(f"{self.name} has the width {second}; give a positive number")
        if not self._mass_inside > 1e-6:
            raise ValueError(f"{self.name} [{first}, {second}] has no log SNR from -20 to 20")

    @property
    def num_timesteps(self) -> int:
        """Number of levels."""
        return NUM_LEVELS

    @property
    def _parameters(self) -> tuple[float, float]:
        return self.parameters or DENSITIES[self.name]

    @property
    def _distribution(self) -> Distribution:
        """The density before it is truncated."""
        first, second = torch.tensor(self._parameters, dtype=torch.float64)
        if self.name == "uniform":
            return Uniform(first, second, validate_args=False)
        if self.name == "laplace":
            return Laplace(first, second)
        return Normal(-2 * first, 2 * second)

    def _cdf(self, logsnr: float) -> Tensor:
        return self._distribution.cdf(torch.tensor(logsnr, dtype=torch.float64))

    @property
    def _mass_inside(self) -> float:
        return float(self._cdf(LOGSNR_LIMIT) - self._cdf(-LOGSNR_LIMIT))

    def quantile(self, share: Tensor) -> Tensor:
        """The log SNR below which this share of the density lies, float64; share in (0, 1)."""
        low = self._cdf(-LOGSNR_LIMIT)
        logsnr = self._distribution.icdf(low + share.double() * self._mass_inside)
        return logsnr.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)

    def mass(self, low: float, high: float) -> float:
        """The share of the density between two log SNRs; either may be infinite."""
        ends = (min(max(end, -LOGSNR_LIMIT), LOGSNR_LIMIT) for end in (low, high))
        below, above = map(self._cdf, ends)
        return max(0.0, float(above - below)) / self._mass_inside

    def weights_of(self, logsnr: Tensor) -> Tensor:
        """Quotients q / p that weigh losses at equally likely levels as though log SNR had this
        density q: E_p[(q / p) mse] = E_q[mse].

        logsnr: of the levels, falling (N,).  Returns float64 (N,), of mean 1: q's mass nearer to a
        level than to its neighbours, over that of all. Raises ValueError where q has none there.
        """
        if len(logsnr) == 1:
            return torch.ones(1, dtype=torch.float64)
        half = logsnr.double().diff() / 2
        edges = torch.cat([logsnr[:1] - half[:1], logsnr[:-1] + half, logsnr[-1:] + half[-1:]])
        masses = -self._distribution.cdf(edges.clamp(-LOGSNR_LIMIT, LOGSNR_LIMIT)).diff()
        if not masses.sum() > 1e-6 * self._mass_inside:
            low, high = float(logsnr[-1]), float(logsnr[0])
            raise ValueError(
                f"{self.name} has nothing between the log SNRs {low:.2f} and {high:.2f} of the "
                "levels that are drawn"
            )
        return len(logsnr) * masses / masses.sum()

    def logsnr_at(self, t: Tensor) -> Tensor:
        """logsnr at levels t, int64 in [1, 65536]: float64, shape and device of t."""
        return _table_on(t.device, self)[0][t - 1]

    def alpha_sigma_at(self, t: Tensor) -> AlphaSigma:
        """sqrt(sigmoid(logsnr)) and sqrt(sigmoid(-logsnr)) there, as logsnr_at()."""
        _, alpha, sigma = _table_on(t.device, self)
        return alpha[t - 1], sigma[t - 1]


@lru_cache(maxsize=16)
def _table_on(device: torch.device, density: LogSnrDensity) -> tuple[Tensor, Tensor, Tensor]:
    """logsnr, alpha and sigma of all levels, computed on the CPU and copied once."""
    share = 1 - (torch.arange(NUM_LEVELS, dtype=torch.float64) + 0.5) / NUM_LEVELS
    logsnr = density.quantile(share)
    alpha, sigma = pair_from_logsnr(logsnr)
    return logsnr.to(device), alpha.to(device), sigma.to(device)


class AdaptiveDensity:
    """Timesteps of a schedule, drawn by how large the loss has been in their bin of log SNR.

    With p the share of a bin among the timesteps 1, ..., T, a timestep of it is drawn and its loss
    weighted by

        q ~ p sqrt(E[loss^2 | bin]),   weight p / q    (Nichol & Dhariwal 2021, section 3.3, Eq. 18)

    whose mean is that of uniform timesteps, whatever q: the objective stays, and of all q this one
    has the least variance of the weighted loss. E is over the last thousand draws of a bin, more or
    less. q = p until every bin has been drawn ten times, and a tenth of it stays so.

    edges: of the bins in log SNR, ascending.  state: as state() gave it; None is the beginning.
    """

    num_places = 1 << 30

    def __init__(
        self,
        schedule: NoiseSchedule,
        edges: Sequence[float],
        state: dict[str, list[float]] | None = None,
    ) -> None:
        num_bins, self.num_timesteps = len(edges) + 1, schedule.num_timesteps
        logsnr = schedule.logsnr_at(torch.arange(1, self.num_timesteps + 1))
        bins = torch.bucketize(logsnr, _doubles(edges))
        self._counts = torch.bincount(bins, minlength=num_bins).double()
        none = [0.0] * num_bins
        self._squares = _doubles(state["squares"] if state else none)
        self._draws = _doubles(state["draws"] if state else none)
        self._table: Tensor | None = None

    def state(self) -> dict[str, list[float]]:
        """Mean squared loss and number of draws of each bin so far: all that q depends on."""
        return {"squares": self._squares.tolist(), "draws": self._draws.tolist()}

    def update(self, squares: Sequence[float], draws: Sequence[float]) -> None:
        """Add a step's sums: squared losses and draws of each bin, over the global batch."""
        new = _doubles(draws)
        self._draws = self._draws + new
        pace = (1 / self._draws.clamp(min=1, max=MOST_DRAWS)).minimum(1 / new.clamp(min=1))
        self._squares = self._squares + pace * (_doubles(squares) - new * self._squares)
        self._table = None

    @property
    def shares(self) -> Tensor:
        """q of each bin, float64, bins ascending in log SNR."""
        uniform = self._counts / self.num_timesteps
        if bool((self._draws[uniform > 0] < FEWEST_DRAWS).any()):
            return uniform
        wanted = uniform * self._squares.sqrt()
        if not wanted.sum() > 0:  # a loss of 0 everywhere
            return uniform
        return UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * wanted / wanted.sum()

    def timesteps(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(t, weight) at equally likely places, int64 (N,) in [1, num_places].

        t: int64 (N,), falling in log SNR as the place rises, as on a schedule.  weight: float64.
        """
        if self._table is None or self._table.device != places.device:
            self._table = self._tabled().to(places.device)
        ends, begins, shares, counts, before, weights = self._table
        share = (places.double() - 0.5) / self.num_places
        found = torch.searchsorted(ends, share, right=True)
        within = ((share - begins[found]) / shares[found] * counts[found]).floor()
        t = 1 + before[found] + torch.minimum(within, counts[found] - 1)
        return t.long(), weights[found]

    def _tabled(self) -> Tensor:
        """Rows over the bins that have timesteps, from the first timestep to the last."""
        shares, counts = self.shares.flip(0), self._counts.flip(0)
        shares, counts = shares[counts > 0], counts[counts > 0]
        ends, before = shares.cumsum(0), counts.cumsum(0) - counts
        ends[-1] = 1.0
        begins = torch.cat([ends.new_zeros(1), ends[:-1]])
        weights = counts / self.num_timesteps / shares
        return torch.stack([ends, begins, shares, counts, before, weights])


def _doubles(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
