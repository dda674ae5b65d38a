"""SEEDS: auto: which cells need another seed, decided from what all have shown so far.

All cells start with a few seeds. Then, at a few looks fixed beforehand, only those cells get
more that may still be the best by one of the two measures: those whose difference from the cell
that leads in it has an interval that holds zero or less. The race is over when one cell is left for
each measure, or at the most seeds.

Looking again and again finds differences where there are none, so the looks share the error. A
false winner must have been told to be better than a cell that is at least as good: of K cells, by
any of K one-sided errors (K - 1 against one that is best, one more where two are). Of that error
each look spends twice what the one before it did, for most races are decided late; so a two-sided
interval at look l of L has confidence

    1 - 2 x 0.05 / K x 2^(l - 1) / (2^L - 1)

and, whatever the looks have to do with each other (Bonferroni), a race names a false winner at most
once in twenty. The report's verdict on a raced sweep uses the same intervals.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ddpm.measures import MEASURES
from ddpm.report.files import Value
from ddpm.report.gaps import gap
from ddpm.report.ranking import Ranking, Standing


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a look found: the cells that may be the best, by each measure."""

    candidates: Mapping[str, tuple[Standing, ...]]

    @property
    def is_decided(self) -> bool:
        """Whether one cell is left for each measure."""
        return all(len(cells) <= 1 for cells in self.candidates.values())

    @property
    def cells(self) -> tuple[Mapping[str, Value], ...]:
        """The cells that are still in the race."""
        found = {cell.label: cell.cell for cells in self.candidates.values() for cell in cells}
        return tuple(found.values())


def confidence(number: int, looks: int, cells: int) -> float:
    """Of one two-sided interval at look `number` (from 1), so that no false winner is named in 95 %
    of races.
    """
    spent = 2 ** (number - 1) / (2**looks - 1)
    return 1 - 2 * 0.05 / max(cells, 2) * spent


def look(
    ranking: Ranking,
    number: int,
    looks: int,
    racing: Collection[Mapping[str, Value]] | None = None,
) -> Look:
    """Compare the cells that are still racing (None: all) at look `number` of `looks`, from 1; all
    cells of the ranking count for the correction.
    """
    level = confidence(number, looks, len(ranking.standings))
    field = tuple(one for one in ranking.standings if racing is None or one.cell in racing)
    own = replace(ranking, standings=field)
    return Look(candidates={m: _candidates(own, field, m, level) for m in MEASURES})


def _candidates(
    ranking: Ranking, field: Sequence[Standing], measure: str, level: float
) -> tuple[Standing, ...]:
    """The cell that leads in this measure and those that cannot be told to be worse."""
    if not field:
        return ()
    first = field[ranking.order(measure)[0]]
    return tuple(
        cell
        for cell in field
        if cell is first or not _is_worse(ranking, cell, first, measure, level)
    )


def _is_worse(
    ranking: Ranking, cell: Standing, first: Standing, measure: str, level: float
) -> bool:
    distance = gap(ranking, cell, first, measure, level)
    return distance.num_seeds > 1 and distance.is_told_apart and distance.mean > 0
