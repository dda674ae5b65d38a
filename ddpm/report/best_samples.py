"""Whose samples are best, in a sentence: what the first screen says besides the x0-error."""

from ddpm.quality_file import Interval
from ddpm.report.film import method
from ddpm.report.ranking import Ranking, Standing
from ddpm.report.sampling import interval_text, over_seeds


def best_samples(ranking: Ranking) -> str:
    """The lowest FID in the most network calls at which every cell was sampled, and how many cells
    have an interval that overlaps with its own; "" where the cells were not all measured alike.
    """
    cells = {standing.label: _fids(standing) for standing in ranking.standings}
    ways = set.intersection(*map(set, cells.values())) if len(cells) > 1 else set()
    if not ways or len(_protocols(ranking)) > 1:
        return ""
    most = max(calls for calls, _ in ways)
    found = {
        (name, way): over_seeds(fids[calls, way])
        for name, fids in cells.items()
        for calls, way in sorted(ways)
        if calls == most
    }
    label, way = min(found, key=lambda key: found[key].value)
    best = found.pop((label, way))
    level = sum(one.low <= best.high for (_, other), one in found.items() if other == way)
    over = "over seeds" if _has_seeds(ranking) else "over samples of one training"
    return (
        f"Samples in {most:g} network calls ({way}): {label} has the lowest FID, "
        f"{interval_text(best)}; the intervals of {level} of {len(cells) - 1} other cells overlap "
        f"with it (95 %, {over})."
    )


def _fids(standing: Standing) -> dict[tuple[float, str], list[Interval]]:
    """FID by calls and method, one of each seed; points that not all seeds have are left out."""
    found: dict[tuple[float, str], list[Interval]] = {}
    for trial in standing.trials.values():
        for point in () if trial.quality is None else trial.quality.points:
            if (fid := point.interval("fid")) is not None:
                found.setdefault((point.evaluations, method(point)), []).append(fid)
    return {key: fids for key, fids in found.items() if len(fids) == len(standing.trials)}


def _protocols(ranking: Ranking) -> set[tuple[str, int]]:
    trials = [trial for standing in ranking.standings for trial in standing.trials.values()]
    return {(t.quality.protocol, t.quality.num) for t in trials if t.quality is not None}


def _has_seeds(ranking: Ranking) -> bool:
    return all(len(standing.trials) > 1 for standing in ranking.standings)
