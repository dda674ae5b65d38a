"""Declaring configuration keys: a frozen dataclass a section, `option(...)` a key.

A Section refuses values outside its limits however it is built; `items_under` walks all its keys.
"""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TypeVar

from ddpm.errors import InputError
from ddpm.values import Option, Refused, read_value, show

T = TypeVar("T")


def option(
    default: T,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    pattern: str | None = None,
    min_items: int = 0,
    is_unique: bool = False,
    is_machine: bool = False,
) -> T:
    """A dataclass field with its meaning and limits: low, high inclusive; above, below exclusive.

    is_machine: says where or how a run is executed, not what is computed; no part of its identity.
    """
    limits = Option(
        help=help,
        choices=choices,
        low=low,
        high=high,
        above=above,
        below=below,
        pattern=pattern,
        min_items=min_items,
        is_unique=is_unique,
        is_machine=is_machine,
    )
    return field(default=default, metadata={"option": limits})


def required(help: str, *, pattern: str | None = None, is_machine: bool = False) -> str:
    """A text field without a default."""
    limits = Option(help=help, pattern=pattern, is_machine=is_machine)
    return field(metadata={"option": limits})


class Section:
    """A section of the configuration: each value is read as its field's type, or refused."""

    def __post_init__(self) -> None:
        problems = []
        for item in items_of(typing.cast(type, type(self))):
            value = getattr(self, item.name)
            try:
                object.__setattr__(self, item.name, read_value(value, item.hint, item.limits))
            except Refused as allowed:
                problems.append(f"{item.name} is {show(value)}; allowed: {allowed}")
        if problems:
            raise InputError([f"{type(self).__name__}: {problem}" for problem in problems])


@dataclass(frozen=True)
class Item:
    """One key: its field's name, type, limits and default (MISSING when it must be given)."""

    name: str
    hint: object
    limits: Option
    default: object


@cache
def items_of(section: type) -> tuple[Item, ...]:
    """The keys of one section, its sub-sections left out."""
    hints = typing.get_type_hints(section)
    return tuple(
        Item(entry.name, hints[entry.name], entry.metadata["option"], entry.default)
        for entry in fields(section)
        if "option" in entry.metadata
    )


@cache
def sections_under(root: type) -> Mapping[str, type]:
    """Dotted name -> dataclass of a section and all below it; the root is ""."""
    found: dict[str, type] = {"": root}
    for name, hint in typing.get_type_hints(root).items():
        if isinstance(hint, type) and is_dataclass(hint):
            for below, section in sections_under(hint).items():
                found[f"{name}.{below}".rstrip(".")] = section
    return found


@cache
def items_under(root: type) -> Mapping[str, Item]:
    """Dotted key -> Item of a section and all below it."""
    return {
        f"{section}.{item.name}".lstrip("."): item
        for section, cls in sections_under(root).items()
        for item in items_of(cls)
    }
