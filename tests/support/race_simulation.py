"""Races of simulated cells: what a trained cell would measure is drawn, everything else is real."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddpm.config import X0_MEASURES
from ddpm.report.race import left_in_race, race_candidates
from ddpm.sweep.spec import Race


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a race ended: the one cell that all measures leave (None: none, or several), and what it
    took.
    """

    winner: str | None
    seeds: int


def run(values: NDArray[np.float64], race: Race) -> Result:
    """A race to its end among cells that measure `values` (cells, seeds, 2 measures)."""
    racing = [str(cell) for cell in range(len(values))]
    seeds = dict.fromkeys(racing, 0)
    for number, count in enumerate(race.looks, 1):
        seeds |= dict.fromkeys(racing, count)
        numbers = {
            measure: {
                cell: dict(enumerate(values[int(cell), :count, place].tolist())) for cell in racing
            }
            for place, measure in enumerate(X0_MEASURES)
        }
        racing = list(left_in_race(race_candidates(numbers, number, len(race.looks), len(values))))
        if len(racing) <= 1:
            break
    return Result(winner=racing[0] if len(racing) == 1 else None, seeds=sum(seeds.values()))


def draws(
    random: np.random.Generator, means: Sequence[float], seeds: int, spread: Sequence[float]
) -> NDArray[np.float64]:
    """(cells, seeds, 2): means plus what a seed does to all cells plus each training's own luck.

    spread: of a training's own luck, by cell. The two measures agree as far as 0.8.
    """
    cells = len(means)
    shared = random.normal(0, 2, (1, seeds, 2))
    own = random.normal(0, 1, (cells, seeds, 2))
    own[..., 1] = 0.8 * own[..., 0] + 0.6 * own[..., 1]
    place = np.asarray(means)[:, None, None]
    return np.asarray(place + shared + own * np.asarray(spread)[:, None, None])
