"""Scaling: slopes of a cell's log error over training compute, and where two cells cross.

The cells of a sweep that differ in size alone, in width (FIRST_CHANNEL) or length (EPOCHS), are one
family. Its front are the sizes that no cheaper one matches, by their means over seeds. On it

    log10 error = a + b log10 compute                             (Kaplan et al. 2020, section 3.3)

is fitted to each seed by itself, so that the interval of b, and of the difference of two families'
lines at a compute, is Student's over seeds. The front is chosen by the same trainings, which
flatters every family a little. A number that is not above its evaluation error counts as that,
which does not fall with compute: a cell is left out where any seed has such a number. Compute is
the core- or GPU-seconds of training, what was paid for, on the machines of this sweep.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np

from ddpm.metrics import mean_interval, t_quantile
from ddpm.report.costs import front
from ddpm.report.labels import TITLES, cell_label, duration, signed, varied, with_error
from ddpm.report.ranking import Ranking, Standing, shared_seeds
from ddpm.report.reading import TrialResult, grouped
from ddpm.runs import gpus_of

SIZES = ("TRAINING.NETWORK.FIRST_CHANNEL", "TRAINING.HYPER_PARAMETERS.EPOCHS")
_LEAST = 3  # sizes of a line
_PLACES = 201  # at which two lines are compared


@dataclass(frozen=True, kw_only=True)
class Law:
    """A family's line by one measure.

    front: its cells, the cheapest first, of which the line is.  compute: log10 of their seconds.
    lines: of each seed (a, b), (S, 2).
    """

    name: str
    measure: str
    cells: tuple[Standing, ...]
    front: tuple[Standing, ...]
    compute: np.ndarray
    seeds: tuple[int, ...]
    lines: np.ndarray

    @property
    def slope(self) -> tuple[float, float]:
        """b and the half-width of its 95 % interval over seeds; NaN of one seed."""
        slopes = self.lines[:, 1].tolist()
        return mean_interval(slopes) if len(slopes) > 1 else (slopes[0], float("nan"))

    def at(self, compute: np.ndarray) -> np.ndarray:
        """log10 of the error on each seed's line, (S, len(compute))."""
        return self.lines[:, :1] + self.lines[:, 1:] * compute


def seconds_of(standing: Standing) -> float | None:
    """Core- or GPU-seconds of its training alone, mean over seeds; None where not recorded."""
    found = [_seconds(trial) for trial in standing.trials.values()]
    known = [one for one in found if one]
    return sum(known) / len(known) if len(known) == len(found) else None


def _seconds(trial: TrialResult) -> float | None:
    waited = trial.number("seconds")
    if gpus_of(trial.provenance) and waited is not None:
        return waited * gpus_of(trial.provenance)
    return trial.number("gpu_seconds") or trial.number("core_seconds")


def laws(ranking: Ranking, measure: str) -> list[Law]:
    """The lines of families with three sizes or more on their front; none where no size varies."""
    found = (_law(name, cells, measure) for name, cells in _families(ranking).items())
    return [law for law in found if law is not None]


def unresolved(ranking: Ranking, measure: str) -> list[Standing]:
    """The cells that the lines leave out, since some seed's number is not above its error."""
    every = [one for cells in _families(ranking).values() for one in cells]
    return [one for one in every if not _is_resolved(one, measure)]


def _is_resolved(standing: Standing, measure: str) -> bool:
    return all(one.is_resolved for one in standing.numbers[measure].values())


def _families(ranking: Ranking) -> dict[str, list[Standing]]:
    """The cells that differ in size alone, by what they share; none where no size varies."""
    keys = varied(one.cell for one in ranking.standings)
    if not any(key in SIZES for key in keys) or ranking.too_few_learned:
        return {}
    others = [key for key in keys if key not in SIZES]
    return grouped(
        ranking.standings,
        lambda one: cell_label(one.cell, others) if others else "all cells",
    )


def _law(name: str, cells: Sequence[Standing], measure: str) -> Law | None:
    known = [
        (one, s)
        for one in cells
        if one.has(measure) and _is_resolved(one, measure) and (s := seconds_of(one))
    ]
    places = front([s for _, s in known], [one.log10(measure) for one, _ in known])
    chosen = [known[place] for place in places]
    seeds = shared_seeds(one for one, _ in chosen)
    if len(chosen) < _LEAST or not seeds:
        return None
    compute = np.log10([s for _, s in chosen])
    errors = np.array([[one.numbers[measure][s].log10 for one, _ in chosen] for s in seeds])
    slopes, levels = np.polyfit(compute, errors.T, 1)
    return Law(
        name=name,
        measure=measure,
        cells=tuple(cells),
        front=tuple(one for one, _ in chosen),
        compute=compute,
        seeds=tuple(seeds),
        lines=np.stack([levels, slopes], axis=1),
    )


def slope_in_words(law: Law) -> str:
    """`-0.21 +- 0.03`."""
    value, half = law.slope
    return with_error(value, half) if half == half else signed(value, 2)


def crossings(found: Sequence[Law]) -> list[str]:
    """Crossing of two families over compute, as far as intervals over seeds show it.

    At both ends of the compute that two fronts share the difference of their lines is compared, all
    pairs and both ends together at 95 % (Bonferroni).
    """
    pairs = [*combinations(found, 2)]
    said = (_crossing(one, other, 1 - 0.05 / (2 * len(pairs))) for one, other in pairs)
    # of many pairs those that do not cross are seen in the chart
    return [words for words in said if words and ("cross" in words or len(pairs) == 1)]


def _crossing(one: Law, other: Law, confidence: float) -> str | None:
    low = max(one.compute[0], other.compute[0])
    high = min(one.compute[-1], other.compute[-1])
    seeds = [seed for seed in one.seeds if seed in other.seeds]
    if low >= high or len(seeds) < 2:
        return None
    places = np.linspace(low, high, _PLACES)
    rows = [[law.seeds.index(seed) for seed in seeds] for law in (one, other)]
    gaps = one.at(places)[rows[0]] - other.at(places)[rows[1]]
    width = t_quantile(confidence, len(seeds) - 1) * gaps.std(axis=0, ddof=1) / sqrt(len(seeds))
    signs = np.where(np.abs(gaps.mean(axis=0)) > width, np.sign(gaps.mean(axis=0)), 0)
    first, last = signs[0], signs[-1]
    if first == 0 or last == 0:
        return None
    cheap, dear = (one, other) if first < 0 else (other, one)
    ends = [duration(float(10 ** places[k])) for k in (0, -1)]
    by = f"By {TITLES[one.measure]}"
    if first == last:
        return f"{by} {cheap.name} is below {dear.name} from {ends[0]} to {ends[1]} of compute."
    until = float(10 ** places[np.flatnonzero(signs == first)[-1]])
    since = float(10 ** places[np.flatnonzero(signs == last)[0]])
    at = float(10 ** places[np.argmin(np.abs(gaps.mean(axis=0)))])
    return (
        f"{by} {cheap.name} is better up to {duration(until)} of compute and {dear.name} from "
        f"{duration(since)} on; their lines cross at {duration(at)}."
    )
