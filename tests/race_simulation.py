"""Races of simulated cells: what a trained cell would measure is drawn, everything else is real."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm.measures import MEASURES, X0Summary
from ddpm.report.race import look
from ddpm.report.ranking import Ranking, Standing
from ddpm.tune import Race


def ranking(values: np.ndarray, seeds: Sequence[int]) -> Ranking:
    """values: (cells, seeds, 2 measures); of cell c the first seeds[c] count."""
    standings = [
        Standing(
            cell={"TRAINING.LABEL_DROP": number},
            label=str(number),
            trials={},
            summaries={seed: _summary(cell[seed]) for seed in range(count)},
        )
        for number, (cell, count) in enumerate(zip(values, seeds, strict=True))
    ]
    standings.sort(key=lambda standing: standing.value(MEASURES[0]))
    return Ranking(levels=(0,), standings=tuple(standings), excluded=())


def _summary(numbers: np.ndarray) -> X0Summary:
    return X0Summary(
        levels=(0,),
        num_pairs=100,
        mean_log10_mse=float(numbers[0]),
        mean_log10_mse_evaluation_error=0.0,
        snr_weighted_mse=float(numbers[1]),
        snr_weighted_mse_evaluation_error=0.0,
    )


def run(values: np.ndarray, race: Race) -> dict[str, Any]:
    """A race to its end: the winner by each measure (None: not told apart), the seeds it took."""
    cells = len(values)
    seeds = [race.START] * cells
    racing = None
    for number, count in enumerate(race.looks, 1):
        found = look(ranking(values, seeds), number, len(race.looks), racing)
        if found.is_decided or count == race.MAX:
            break
        racing = found.cells
        for cell in racing:
            seeds[cell["TRAINING.LABEL_DROP"]] = race.looks[number]
    left = found.candidates
    winners = {m: left[m][0].label if len(left[m]) == 1 else None for m in MEASURES}
    return {"winners": winners, "seeds": sum(seeds), "looks": number}


def draws(
    random: np.random.Generator, means: Sequence[float], seeds: int, spread: Sequence[float]
) -> np.ndarray:
    """(cells, seeds, 2): means plus what a seed does to all cells plus each training's own luck.

    spread: of a training's own luck, by cell. The two measures agree as far as 0.8.
    """
    cells = len(means)
    shared = random.normal(0, 2, (1, seeds, 2))
    own = random.normal(0, 1, (cells, seeds, 2))
    own[..., 1] = 0.8 * own[..., 0] + 0.6 * own[..., 1]
    place = np.asarray(means)[:, None, None]
    return place + shared + own * np.asarray(spread)[:, None, None]
