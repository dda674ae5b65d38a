"""Population based training (Jaderberg 2017) as functions of what the members measured.

At a boundary the members of a population stand after equally many images. Each of the worst quarter
takes over the weights of one of the best quarter, and its values of SPACE, each moved a tenth of
its range up or down (by ratio in a loguniform one) or, once in four, drawn anew. All choices are
functions of (boundary, member), so a population that continues makes the ones it would have made.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

from ddpm.config import Value
from ddpm.sweep.spec import Range, share

QUARTER = 4
ANEW = 0.25
MOVE = 0.1


@dataclass(frozen=True, kw_only=True)
class Exploit:
    """member takes over the weights of `donor` and goes on with `values`."""

    member: str
    donor: str
    values: Mapping[str, Value]


def exploits(
    boundary: int,
    costs: Mapping[str, float],
    values: Mapping[str, Mapping[str, object]],
    space: Mapping[str, Range],
) -> list[Exploit]:
    """Who takes over what at a boundary.

    costs: member -> what it measured there, lower is better.  values: member -> its values now.
    """
    order = sorted(costs, key=lambda member: (costs[member], member))
    count = min(max(1, len(order) // QUARTER), len(order) // 2)
    best: Sequence[str] = order[:count]
    found = []
    for member in order[len(order) - count :]:
        donor = best[int(share(f"{boundary}/{member}/donor", 0) * count)]
        found.append(
            Exploit(
                member=member,
                donor=donor,
                values=explored(f"{boundary}/{member}", values[donor], space),
            )
        )
    return found


def explored(
    name: str, values: Mapping[str, object], space: Mapping[str, Range]
) -> dict[str, Value]:
    """Values near these; `name` makes the choices."""
    found: dict[str, Value] = {}
    for key, one in space.items():
        anew, where = (share(f"{name}/{key}", number) for number in (0, 1))
        value = values[key]
        assert isinstance(value, int | float)  # a value of this range
        place = where if anew < ANEW else _place(one, value) + (MOVE if where < 0.5 else -MOVE)
        found[key] = one.at(min(max(place, 0.0), 1.0))
    return found


def _place(one: Range, value: float) -> float:
    """How far up the range a value lies, 0 to 1."""
    if one.is_log:
        return log(value / one.low) / log(one.high / one.low)
    return (value - one.low) / (one.high - one.low)
