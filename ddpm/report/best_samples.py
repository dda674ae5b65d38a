"""Quality of samples over network calls and over guidance, cell by cell: what a call buys, and
where the best cell changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from ddpm.config import MEASURES
from ddpm.metrics import QUALITY_MEASURES, Interval, QualityPoint, mean_interval
from ddpm.report.costs import front
from ddpm.report.labels import Axes, Cell, listed
from ddpm.report.ranking import CONFIDENCE, Ranking, rank, shared_points
from ddpm.report.reading import SweepResults, TrialResult, grouped

_SIGNS = {one.key: one.sign for one in MEASURES.values()}


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One cell sampled in one way: mean over seeds, with the interval over them where it has two or
    more, else the interval of its one trial.  point: of one of its trials.
    """

    cell: Cell
    label: str
    point: QualityPoint
    seconds: float
    num_seeds: int
    qualities: Mapping[str, Interval]


@dataclass(frozen=True, kw_only=True)
class Along:
    """The cells ranked at each value of network calls an image, or of guidance.

    Intervals hold for all values together (Bonferroni).
    """

    name: str  # network calls | guidance
    rankings: Mapping[float, Ranking]

    def sentences(self) -> list[str]:
        """Changes of the best cell, as far as intervals show them; else a cell that wins at every
        value, if there is one.
        """
        leaders = dict.fromkeys(
            ranking.lowest(measure).label
            for ranking in self.rankings.values()
            for measure in ranking.measures
        )
        found = []
        for one, other in combinations(leaders, 2):
            signs = {value: self._sign(value, one, other) for value in self.rankings}
            parts = [
                f"at {listed([f'{v:g}' for v in where])} {a} beats {b}"
                for sign, a, b in ((-1, one, other), (1, other, one))
                if (where := [value for value, one_sign in signs.items() if one_sign == sign])
            ]
            if len(parts) == 2:
                found.append(f"The answer depends on {self.name}{self._where}: {'; '.join(parts)}.")
        winners = [r.winner.label if r.winner else "" for r in self.rankings.values()]
        if len(winners) > 1 and len({*winners}) == 1 and winners[0]:
            first, last = f"{min(self.rankings):g}", f"{max(self.rankings):g}"
            found.append(
                f"{winners[0]} wins{self._where} at every value of {self.name} tried, from {first} "
                f"to {last}."
            )
        return found

    @property
    def _where(self) -> str:
        rankings = self.rankings.values()
        has_seeds = all(r.spread(measure) is not None for r in rankings for measure in r.measures)
        return "" if has_seeds else " in this run"

    def _sign(self, value: float, one: str, other: str) -> int:
        """-1 where the one beats the other by a measure and is beaten by none, 1 the other way."""
        ranking = self.rankings[value]
        cells = {standing.label: standing for standing in ranking.standings}
        if one not in cells or other not in cells:
            return 0
        signs = {ranking.gap(cells[one], cells[other], m).sign for m in ranking.measures} - {0}
        return signs.pop() if len(signs) == 1 else 0


def along(sweep: SweepResults, ranking: Ranking) -> list[Along]:
    """The ranking over network calls, and over guidance, where the sweep has several of them."""
    point = ranking.point
    if point is None or ranking.too_few_learned:
        return []
    cells = [list(standing.trials.values()) for standing in ranking.standings]
    alike = [p for p in shared_points(cells) if (p.sampler, p.eta) == (point.sampler, point.eta)]
    found = []
    axes: tuple[tuple[str, dict[float, QualityPoint]], ...] = (
        ("network calls", {p.evaluations: p for p in alike if p.guidance == point.guidance}),
        ("guidance", {p.guidance: p for p in alike if p.num_steps == point.num_steps}),
    )
    for name, points in axes:
        if len(points) > 1:
            confidence = 1 - (1 - CONFIDENCE) / len(points)
            trials = tuple(trial for some in cells for trial in some)
            some = replace(sweep, trials=trials, tuning=())
            rankings = {k: rank(some, at=points[k], confidence=confidence) for k in sorted(points)}
            kept = {k: r for k, r in rankings.items() if r.of_samples and r.standings}
            found.append(Along(name=name, rankings=kept))
    return found


def method(point: QualityPoint) -> str:
    """The sampler without its steps: `ddim`, `ddim \u03b7=1`, `dpmpp_2m guidance=2`."""
    eta = "" if point.eta == 0 else f" \u03b7={point.eta:g}"
    if point.ema_length is not None:
        eta += f" length={point.ema_length:g}"
    return point.sampler + eta + ("" if point.guidance == 1 else f" guidance={point.guidance:g}")


def spots_of(sweep: SweepResults, axes: Axes) -> list[Spot]:
    """Every cell at every point at which it was sampled, in the grid's order."""
    drawn = [(t, point) for t in sweep.trials if t.quality for point in t.quality.points]
    alike = grouped(drawn, lambda one: (one[0].key, method(one[1]), one[1].num_steps))
    return [_spot(some[0][0], [point for _, point in some], axes) for some in alike.values()]


def _spot(trial: TrialResult, points: Sequence[QualityPoint], axes: Axes) -> Spot:
    found = {
        name: [one for point in points if (one := point.interval(name)) is not None]
        for name in QUALITY_MEASURES
    }
    return Spot(
        cell=trial.cell,
        label=axes.label(trial.cell),
        point=points[0],
        seconds=sum(one.seconds for one in points) / len(points),
        num_seeds=len(points),
        qualities={name: over_seeds(seen) for name, seen in found.items() if seen},
    )


def over_seeds(found: Sequence[Interval]) -> Interval:
    """The mean with its 95 % interval over seeds; of a single seed its own."""
    if len(found) == 1:
        return found[0]
    mean, half = mean_interval([one.value for one in found])
    return Interval(value=mean, low=mean - half, high=mean + half)


def best_front(spots: Sequence[Spot], name: str) -> list[Spot]:
    """The spots on the Pareto front of a quality over network calls, from the cheapest."""
    some = [spot for spot in spots if name in spot.qualities]
    values = [_SIGNS[name] * spot.qualities[name].value for spot in some]
    return [some[place] for place in front([spot.point.evaluations for spot in some], values)]


def left_out(sweep: SweepResults, axes: Axes) -> list[tuple[str, str]]:
    """Cell, and the sampling that was configured and was not possible, with the reason."""
    return list(
        dict.fromkeys(
            (
                axes.label(trial.cell),
                f"{left.num_steps} steps, \u03b7={left.eta:g}"
                f"{'' if left.ema_length is None else f', length {left.ema_length:g}'}"
                f"{'' if left.guidance == 1 else f', guidance {left.guidance:g}'}: {left.reason}",
            )
            for trial in sweep.trials
            if trial.quality is not None
            for left in trial.quality.left_out
        )
    )
