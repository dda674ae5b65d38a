"""What ties keys together: a rule reads several keys and says in one line what is wrong.

A rule runs only where all its keys are valid by themselves, so one mistake gives one line. Rules
marked `is_impossible` describe combinations that a sweep's grid may contain and skips.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ddpm.values import Value

RuleText = str | None
Pair = tuple[int, int]


@dataclass(frozen=True)
class Rule:
    """The keys a rule reads and its text for their values, None where it holds."""

    keys: tuple[str, ...]
    text: Callable[..., RuleText]
    is_impossible: bool


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold; `key` is the one to look at first."""

    key: str
    text: str
    is_impossible: bool


def rule(*keys: str, is_impossible: bool = False) -> Callable[[Callable[..., RuleText]], Rule]:
    """Makes a function of the values of `keys`, in this order, a Rule."""
    return lambda text: Rule(keys, text, is_impossible)


def violations(rules: Iterable[Rule], values: Mapping[str, Value]) -> list[Violation]:
    """The rules that do not hold; those over a key that `values` lacks are left out."""
    found = []
    for each in rules:
        if all(key in values for key in each.keys):
            text = each.text(*(values[key] for key in each.keys))
            if text is not None:
                found.append(Violation(each.keys[0], text, each.is_impossible))
    return found


def height_width(size: int | Pair) -> Pair:
    """INPUT_IMAGE_SIZE as (height, width)."""
    return (size, size) if isinstance(size, int) else size
