"""From a document to a Config: every key found, read and checked, every problem in one list."""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache

from ddpm.errors import InputError
from ddpm.network_rules import NETWORK_RULES
from ddpm.options import Item, items_under, sections_under
from ddpm.reading import COMMAND_LINE, Document, Tree, leaves, read_override, set_key
from ddpm.references import resolve
from ddpm.rules import violations
from ddpm.run_rules import RUN_RULES
from ddpm.schema import Config, ImageGeneration
from ddpm.values import Refused, Value, advice, is_null, nearest, read_value, show

T = typing.TypeVar("T")


@dataclass(frozen=True)
class Built:
    """A Config, or why there is none.

    problems: lines for the user, with their places.  impossible: why a combination of values, each
    fine by itself, makes no sense; a grid may contain it and skips it.
    """

    config: Config | None
    problems: tuple[str, ...]
    impossible: tuple[str, ...]

    @property
    def is_only_impossible(self) -> bool:
        """Whether nothing but its combination of values speaks against it."""
        return bool(self.impossible) and len(self.impossible) == len(self.problems)


def apply_overrides(document: Document, overrides: Iterable[str]) -> None:
    """Puts `SECTION.KEY=value` texts into the document, over what stands there."""
    seen: set[str] = set()
    for text in overrides:
        try:
            key, value = read_override(text)
        except InputError as error:
            document.problems.extend(error.problems)
            continue
        document.places[key] = COMMAND_LINE
        if key in seen:
            document.problems.append(f"{COMMAND_LINE}: {key} is given twice; keep one")
        elif key in sections_under(Config):
            _check_place(document, Config, key, value)
        else:
            set_key(document.tree, key, value)
        seen.add(key)


def build(document: Document) -> Built:
    """The document as a Config, checked; changes the document (references, problems)."""
    resolve(document, default_values())
    values = read_values(document, Config)
    problems = list(document.problems)
    impossible: list[str] = []
    for broken in violations((*NETWORK_RULES, *RUN_RULES), values):
        problems.append(f"{document.place(broken.key)}: {broken.text}")
        if broken.is_impossible:
            impossible.append(broken.text)
    config = None if problems or document.spoiled else construct(Config, values)
    return Built(config, tuple(dict.fromkeys(problems)), tuple(impossible))


@dataclass(frozen=True, kw_only=True)
class _Generation:
    IMAGE_GENERATION: ImageGeneration


def build_generation(document: Document) -> ImageGeneration:
    """The document's IMAGE_GENERATION alone, each value checked by itself; changes the document.

    Raises InputError.
    """
    resolve(document, default_values())
    own = document.tree.get("IMAGE_GENERATION")
    document.tree = {} if own is None else {"IMAGE_GENERATION": own}
    values = read_values(document, _Generation)
    if document.problems:
        raise InputError(list(dict.fromkeys(document.problems)))
    return construct(_Generation, values).IMAGE_GENERATION


@cache
def default_values() -> Mapping[str, Value]:
    """Dotted key -> default of a Config, without the keys that must be given."""
    return _defaults(Config)


def read_values(document: Document, root: type) -> dict[str, Value]:
    """The value of every key of `root`; problems go to the document, with the keys they spoil.

    Keys that are missing or spoiled are left out.
    """
    items = items_under(root)
    values = dict(_defaults(root))
    for key, value in leaves(document.tree):
        if key in document.spoiled:
            continue
        if key in items:
            values[key] = read_item(document, key, items[key], value)
        elif key:
            _check_place(document, root, key, value)
    for key, item in items.items():
        if key not in values and key not in document.spoiled:
            document.problems.append(
                f"{document.source}: {key} is missing; give it: {item.limits.help}"
            )
    return {key: value for key, value in values.items() if key not in document.spoiled}


def construct(root: type[T], values: Mapping[str, Value], prefix: str = "") -> T:
    """The dataclass of a section, its sub-sections included, from dotted keys and values."""
    below = sections_under(typing.cast(type, root))
    arguments: dict[str, object] = {}
    for entry in fields(typing.cast(type, root)):
        key = f"{prefix}{entry.name}"
        is_section = entry.name in below
        arguments[entry.name] = (
            construct(below[entry.name], values, key + ".") if is_section else values[key]
        )
    return root(**arguments)


def nearest_key(key: str, root: type = Config) -> str | None:
    """The known key or section that a wrong dotted key most likely stands for."""
    known = [name for name in (*sections_under(root), *items_under(root)) if name]
    section, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    everywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names in (siblings, everywhere):
        match = nearest(name, names)
        if match is not None:
            return names[match]
    return nearest(key, known)


def _defaults(root: type) -> dict[str, Value]:
    items = items_under(root).items()
    return {k: typing.cast(Value, item.default) for k, item in items if item.default is not MISSING}


def read_item(document: Document, key: str, item: Item, value: Tree) -> Value:
    """One key's value; refused, it is None, the problem noted and the key spoiled."""
    try:
        return read_value(value, item.hint, item.limits)
    except Refused as allowed:
        document.problems.append(
            f"{document.place(key)}: {key} is {show(value)}; allowed: {allowed}; "
            f"{advice(value, item.limits, item.default)}"
        )
        document.spoiled.add(key)
        return None


def _check_place(document: Document, root: type, key: str, value: Tree) -> None:
    """A value that stands at no known key: a section's name, below a key, or a misspelt key."""
    sections, items = sections_under(root), items_under(root)
    if key in sections:
        if not is_null(value) and value != {}:
            document.problems.append(
                f"{document.place(key)}: {key} is {show(value)} but {key} is a section; "
                f"give its keys, such as {key}.{fields(sections[key])[0].name}"
            )
        return
    parts = key.split(".")
    prefixes = [".".join(parts[: n + 1]) for n in range(len(parts))]
    unknown = next(prefix for prefix in prefixes if prefix not in sections)
    if unknown in items:
        document.problems.append(
            f"{document.place(unknown)}: {unknown} is a section; give a value, not keys"
        )
        document.spoiled.add(unknown)
    else:
        _refuse_unknown(document, root, key, unknown)


def _refuse_unknown(document: Document, root: type, key: str, unknown: str) -> None:
    guess = nearest_key(unknown, root)
    tops = ", ".join(entry.name for entry in fields(root))
    hint = f"did you mean {guess}?" if guess else f"the sections are {tops}"
    place = document.places.get(unknown) or document.place(key)
    line = f"{place}: {unknown} is no key; {hint}"
    if line not in document.problems:
        document.problems.append(line)
    if guess:
        # What was meant is not known to be its default: no rule should judge that.
        document.spoiled.add(guess + key.removeprefix(unknown))
