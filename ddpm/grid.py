"""Reading a sweep file: its base and what varies, the axes of its grid and its ranges.

Problems gather in the sweep's document, so that `ddpm.sweep.load_sweep` can report all at once.
"""

from collections.abc import Iterable
from pathlib import Path

from ddpm import space
from ddpm.building import apply_overrides, nearest_key, read_item
from ddpm.errors import InputError
from ddpm.options import items_under, sections_under
from ddpm.reading import (
    COMMAND_LINE,
    Document,
    Tree,
    leaves,
    read_file,
    read_override,
    set_key,
)
from ddpm.schema import Config
from ddpm.space import Range
from ddpm.tune import KEYS
from ddpm.values import Value, is_null, show

Axes = dict[str, tuple[Value, ...]]
# Keys that say what trials are compared on; cells that differ in them are not comparable.
_MEASURE = {
    "DATASET.NAME": "it names the data, which is the same for all cells",
    "DATASET.VALIDATION_FRACTION": "cells would be compared on different images",
    "EVALUATION.EVERY": "it changes no training",
    "EVALUATION.NUM": "cells would be compared on different images",
    "EVALUATION.SEED": "cells would be compared on different images and noise",
    "TRAINING.SEED": "give SEEDS instead",
    **{
        f"EVALUATION.SAMPLING_{name}": "cells would be compared by different samples"
        for name in ("STEPS", "ETAS", "NUM", "LOGSNR")
    },
}


def override_sweep(document: Document, overrides: Iterable[str]) -> list[str]:
    """Applies the overrides that address the sweep file; returns those of the base."""
    others, seen = [], set()
    for text in overrides:
        top, dot, key = text.partition("=")[0].strip().upper().partition(".")
        if top not in KEYS:
            others.append(text)
            continue
        try:
            name, value = read_override(text)
        except InputError as error:
            document.problems.extend(error.problems)
            continue
        if name in seen or top == "BASE" or (top in ("GRID", "SPACE") and not dot):
            document.problems.append(
                f"{COMMAND_LINE}: {name} cannot be set so; give SEEDS, TUNE.KEY, GRID.SECTION.KEY "
                "or SPACE.SECTION.KEY, each once, or another sweep file"
            )
            continue
        seen.add(name)
        if top in ("GRID", "SPACE"):
            axes = document.tree.setdefault(top, {})
            if isinstance(axes, dict):
                axes[key] = value
        else:
            set_key(document.tree, name, value)
        document.places[name] = COMMAND_LINE
    return others


def read_base(document: Document, path: Path, overrides: list[str]) -> Document:
    """The document that every cell starts from; its problems join the sweep's."""
    given = document.tree.get("BASE")
    base = Document(str(path))
    if isinstance(given, dict):
        inside = {k: at for k, at in document.places.items() if k.startswith("BASE.")}
        base.tree = given
        base.places = {key.removeprefix("BASE."): at for key, at in inside.items()}
    elif isinstance(given, str) and not is_null(given):
        base = read_file(path.parent / given)
    else:
        document.problems.append(
            f"{document.place('BASE')}: BASE is {show(given)}; give the path of a configuration, "
            "relative to this file, or its sections"
        )
        # Nothing more can be said about cells that have no base.
        raise InputError(document.problems)
    _put_over(base, document)
    apply_overrides(base, overrides)
    if base.places.get("TRAINING.SEED") == COMMAND_LINE:
        document.problems.append(
            f"{COMMAND_LINE}: TRAINING.SEED: a sweep sets it; give SEEDS=[...]"
        )
    return base


def _put_over(base: Document, document: Document) -> None:
    """Puts the sections that stand in the sweep file itself over those of BASE."""
    for section in [name for name in document.tree if name in sections_under(Config)]:
        for key, value in leaves(document.tree.pop(section), section):
            set_key(base.tree, key, value)
        inside = (k for k in document.places if k == section or k.startswith(f"{section}."))
        base.places |= {key: document.places[key] for key in inside}


def read_grid(document: Document, base: Document) -> Axes:
    """The grid's valid keys and values; problems go to the document, spoiled keys to the base."""
    given = document.tree.get("GRID")
    if given is None and (document.tree.get("NAMES") or document.tree.get("SPACE")):
        return {}
    if given is not None and "NAMES" in document.tree:
        document.problems.append(
            f"{document.place('NAMES')}: NAMES and GRID exclude each other; names stand for one "
            "configuration trained several times"
        )
    if not isinstance(given, dict) or not given:
        document.problems.append(
            f"{document.place('GRID')}: GRID is {show(given)}; give dotted keys with a list of "
            "values each, such as TRAINING.PRED_TYPE: [noise, velocity]"
        )
        return {}
    grid: Axes = {}
    for key, values in given.items():
        problem = _refuse_axis("GRID", key, base) or _refuse_list(key, values)
        read = () if problem else _read_axis(document, key, values)
        if problem:
            document.problems.append(f"{document.place('GRID.' + key)}: {problem}")
        if read:
            grid[key] = read
        else:
            base.spoiled.add(nearest_key(key) or key)
    return grid


def read_space(document: Document, base: Document, grid: Axes) -> dict[str, Range]:
    """The ranges of SPACE, likewise."""

    def refuse(key: str) -> str | None:
        twice = f"{key} is both in GRID and in SPACE; keep one" if key in grid else None
        return twice or _refuse_axis("SPACE", key, base)

    found = space.read_space(document, items_under(Config), refuse)
    given = document.tree.get("SPACE")
    for key in given if isinstance(given, dict) else ():
        if key not in found:
            base.spoiled.add(nearest_key(key) or key)
    return found


def _refuse_axis(section: str, key: str, base: Document) -> str | None:
    """Why a key cannot be varied; None when it can."""
    item = items_under(Config).get(key)
    if item is None:
        guess = nearest_key(key)
        return f"{section}.{key} is no key; " + (f"did you mean {guess}?" if guess else "give one")
    if key in _MEASURE:
        return f"{section}.{key} cannot be varied: {_MEASURE[key]}"
    if item.limits.is_machine:
        return f"{section}.{key} cannot be varied: it changes where a run is, not what it computes"
    if base.places.get(key) == COMMAND_LINE:
        return (
            f"{key} is both in {section} and on the command line; override {section}.{key} instead"
        )
    return None


def _refuse_list(key: str, values: Tree) -> str | None:
    if not isinstance(values, list) or not values:
        return f"GRID.{key} is {show(values)}; give a list of at least one value"
    return None


def _read_axis(document: Document, key: str, values: Tree) -> tuple[Value, ...]:
    item = items_under(Config)[key]
    found: list[Value] = []
    for value in values if isinstance(values, list) else []:
        part = Document(document.source, {}, {key: document.place("GRID." + key)})
        read = read_item(part, key, item, value)
        if not part.spoiled and read in found:
            part.problems.append(f"{part.place(key)}: GRID.{key} holds {show(value)} twice")
        elif not part.spoiled:
            found.append(read)
        document.problems.extend(part.problems)
    return tuple(found)
