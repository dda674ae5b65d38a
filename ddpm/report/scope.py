"""What the intervals of a report rest on, and what they may not claim, in sentences."""

from math import isfinite

from ddpm.measures import MEASURES
from ddpm.report.data import Sweep
from ddpm.report.labels import listed
from ddpm.report.ranking import Ranking
from ddpm.report.spread import CHOICE_DOF, Spread


def scope(sweep: Sweep, ranking: Ranking) -> str:
    """Over what the intervals are, and what one or two seeds may not claim."""
    count = len(ranking.standings)
    pairs = next(iter(ranking.standings[0].summaries.values())).num_pairs
    most = max(len(standing.summaries) for standing in ranking.standings)
    if most > 1 and (count > 1 or ranking.num_seeds > 1):
        fewer = f"{ranking.num_seeds} to " if ranking.num_seeds < most else ""
        return (
            f"Intervals are over {fewer}{most} training seeds, each measured on {pairs} "
            f"validation images.{_few(ranking)}"
        )
    what = "this one trained network" if count == 1 else f"these {count} trained networks"
    more = " Give SEEDS three or more values to learn about the cells." if sweep.is_sweep else ""
    return (
        f"One training seed: this speaks of {what} on {pairs} validation images and claims nothing "
        f"about the cells beyond this run.{more}"
    )


def _few(ranking: Ranking) -> str:
    """What intervals take for granted where a cell has one or two seeds."""
    single = [one.label for one in ranking.standings if len(one.summaries) == 1]
    if single:
        return (
            f" {listed(single)} {'has' if len(single) == 1 else 'have'} one seed only, so that "
            "it is taken for granted, not seen, that such cells scatter as the others do."
        )
    if ranking.num_seeds == 2:
        return (
            " Two seeds do not show whether all cells scatter alike, which these intervals take "
            "for granted; the interval of one cell by itself is very wide."
        )
    return ""


def pairing(ranking: Ranking, measure: str = MEASURES[0]) -> str:
    """The ratio of paired to unpaired variance, and which interval is used for it."""
    found = ranking.spread(measure)
    if found is None:
        return (
            "With one seed, differences are paired by (validation image, noise) pair, and what is "
            "paired over seeds cannot be said."
        )
    if not isfinite(found.ratio):
        return (
            "No two cells share seeds enough to pair by them, so intervals are unpaired."
            if found.paired_dof < 1
            else "The cells do not scatter at all over seeds."
        )
    much = (
        "All trials of a seed share batches and noise. Over seeds, paired differences vary "
        f"{found.ratio:.2f} times as much as unpaired ones would"
    )
    return f"{much}; {_choice(found)}."


def _choice(found: Spread) -> str:
    if not found.is_paired:
        return "unpaired intervals are narrower here and are used"
    if found.ratio < 1:
        return "intervals are paired"
    return (
        "pairing gains nothing here. Intervals are paired all the same: fewer than "
        f"{CHOICE_DOF} degrees of freedom are too few to choose by the result"
        if found.paired_dof < CHOICE_DOF
        else "intervals are paired all the same, being narrower"
    )


def apart(ranking: Ranking) -> str:
    """The cells that scatter too much for a common spread; "" without any."""
    places = {p for m in MEASURES if (s := ranking.spread(m)) is not None for p in s.apart}
    if not places:
        return ""
    names = [ranking.standings[place].label for place in sorted(places)]
    verb = "scatters" if len(names) == 1 else "scatter"
    return (
        f"{listed(names)} {verb} over seeds far more than the other cells (an F test at 2 %), so "
        "comparisons with it rest on the spread of the two cells compared."
    )
