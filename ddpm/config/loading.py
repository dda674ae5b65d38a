"""YAML text as a tree with upper-case keys, and the place (file:line) of every key.

PyYAML's safe parser (the one below OmegaConf) gives the text of each scalar, which its field's type
reads later: OmegaConf's own reader turns `1:30` into 90 and `on` into true before a type is known.
Tags, merge keys and keys given twice are refused.
"""

import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import cast

import yaml

from ddpm.config.rules import NETWORK_RULES, RUN_RULES, violations
from ddpm.config.schema import (
    Config,
    ImageGeneration,
    Item,
    Plain,
    Refused,
    Value,
    advice,
    is_null,
    items_under,
    nearest,
    plain,
    read_value,
    sections_under,
    show,
)
from ddpm.errors import InputError

# Text (Plain or quoted), Python scalars (from_dict), lists and sections of these.
Tree = dict[str, "Tree"] | list["Tree"] | str | int | float | bool | None

COMMAND_LINE = "command line"

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Both quotes and both block styles; the C and the Python parser mark plain text differently.
_QUOTES = ("'", '"', "|", ">")
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
_MOST_BYTES = 1_000_000
_MOST_NODES = 20_000
_DEEPEST = 20
# Keys of earlier versions: their null stands in the training_config.yaml of every run of that time.
_GONE = ("IMAGE_GENERATION.DYNAMIC_THRESHOLD", "IMAGE_GENERATION.BETWEEN")


@dataclass
class Document:
    """A tree of keys; `places` says where each dotted key stood, `problems` what cannot be read.

    `spoiled` are keys that were given but are in no state to be judged: rules leave them alone.
    """

    source: str
    tree: dict[str, Tree] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    spoiled: set[str] = field(default_factory=set)

    def place(self, key: str) -> str:
        """Where a key stands, as file:line; the document where it was not given."""
        return self.places.get(key, self.source)


def read_file(path: Path) -> Document:
    """The document in a YAML file. Raises InputError when the file cannot be read at all."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: larger than {_MOST_BYTES} bytes; give a configuration")
        return read_text(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the path of a YAML configuration") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the path of a YAML configuration") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; give a YAML configuration") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(text: str, source: str) -> Document:
    """The document in YAML text; `source` names it in messages."""
    document = Document(source)
    node = _compose(text, source)
    if isinstance(node, yaml.MappingNode):
        tree = _Builder(document).build(node, "")
        document.tree = tree if isinstance(tree, dict) else {}
    elif node is not None:
        document.problems.append(f"{source}: holds no sections; write SECTION: and its keys below")
    return document


def read_plain(mapping: object, source: str) -> Document:
    """The document in nested Python dicts, as from `config.to_dict`."""
    document = Document(source)
    tree = _upper(mapping, "", document)
    if isinstance(tree, dict):
        document.tree = tree
    else:
        document.problems.append(f"{source}: holds no sections; give a dict of sections")
    return document


def read_override(text: str) -> tuple[str, Tree]:
    """The dotted key, upper-cased, and the value of `SECTION.KEY=value`. Raises InputError."""
    name, equals, value = text.partition("=")
    key = name.strip().upper()
    if not equals or not key:
        raise InputError(f"{COMMAND_LINE}: {text!r} is no override; write SECTION.KEY=value")
    source = f"{COMMAND_LINE}: {key}"
    document = Document(source)
    node = _compose(value, source)
    tree = None if node is None else _Builder(document).build(node, "")
    if document.problems:
        raise InputError(document.problems)
    return key, tree


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        is_file = not source.startswith(COMMAND_LINE)
        line = f":{error.problem_mark.line + 1}" if error.problem_mark and is_file else ""
        raise InputError(f"{source}{line}: not YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{source}: not YAML: {reason}") from None


class _Builder:
    """Turns YAML nodes into a tree; notes places and problems in the document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def build(self, node: yaml.Node, key: str, depth: int = 0) -> Tree:
        self.count += 1
        if self.count > _MOST_NODES or depth > _DEEPEST:
            raise InputError(
                f"{self._at(node)}: too many or too deeply nested values; write them out"
            )
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self._refuse(node, f"{key} has the tag {node.tag}; give a plain value")
            self.document.spoiled.add(key)
        if isinstance(node, yaml.MappingNode):
            return self._section(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, key, depth + 1) for item in node.value]
        return str(node.value) if node.style in _QUOTES else Plain(node.value)

    def _section(self, node: yaml.MappingNode, prefix: str, depth: int) -> dict[str, Tree]:
        section: dict[str, Tree] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value).upper() if name_node.id == "scalar" else "?"
            key = f"{prefix}.{name}".lstrip(".")
            if name_node.id != "scalar" or name == "<<":
                self._refuse(name_node, "merge keys and lists as keys are not read; write keys out")
            elif name in section:
                first = self.document.places.get(key, "above")
                self._refuse(name_node, f"{key} is given twice, first at {first}; keep one")
            else:
                self.document.places[key] = self._at(name_node)
                section[name] = self.build(value_node, key, depth + 1)
        return section

    def _at(self, node: yaml.Node) -> str:
        is_override = self.document.source.startswith(COMMAND_LINE)
        line = node.start_mark.line + 1
        return self.document.source if is_override else f"{self.document.source}:{line}"

    def _refuse(self, node: yaml.Node, text: str) -> None:
        self.document.problems.append(f"{self._at(node)}: {text}")


def as_tree(value: object) -> Tree:
    """A Python value as a tree: tuples become lists."""
    return cast(Tree, plain(value))


def _upper(value: object, key: str, document: Document) -> Tree:
    """A Python tree with upper-case keys; two spellings of one key are a problem."""
    if not isinstance(value, dict):
        return as_tree(value)
    section: dict[str, Tree] = {}
    for name, item in value.items():
        upper = str(name).upper()
        dotted = f"{key}.{upper}".lstrip(".")
        if upper in section:
            document.problems.append(f"{document.source}: {dotted} is given twice; keep one")
        section[upper] = _upper(item, dotted, document)
    return section


def leaves(tree: Tree, key: str = "") -> Iterator[tuple[str, Tree]]:
    """(dotted key, value) of everything but sections; an empty section is a value of its own."""
    if not isinstance(tree, dict) or not tree:
        yield key, tree
        return
    for name, item in tree.items():
        yield from leaves(item, f"{key}.{name}".lstrip("."))


def set_key(tree: dict[str, Tree], key: str, value: Tree) -> None:
    """Puts a value at a dotted key, making sections on the way."""
    *sections, name = key.split(".")
    for section in sections:
        below = tree.get(section)
        if not isinstance(below, dict):
            below = tree[section] = {}
        tree = below
    tree[name] = value


def copy_tree(tree: dict[str, Tree]) -> dict[str, Tree]:
    """A copy whose sections can be changed."""
    return {k: copy_tree(v) if isinstance(v, dict) else v for k, v in tree.items()}


def remove_key(tree: dict[str, Tree], key: str) -> None:
    """Takes a dotted key away."""
    *sections, name = key.split(".")
    for section in sections:
        tree = cast(dict[str, Tree], tree[section])
    del tree[name]


# --------
# References `${SECTION.KEY}` between configuration values, resolved by OmegaConf.
#
# Only plain references are read. Resolvers such as `${oc.env:HOME}` are refused: a configuration says
# what is computed, is copied into every run, and must not carry what one machine's environment holds.

_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][A-Za-z0-9_.]*\s*\}")


def resolve(document: Document, defaults: Mapping[str, Value]) -> None:
    """Replaces each reference of the document by what that key holds there, or by its default."""
    given = dict(leaves(document.tree))
    referring = {key: text for key, text in given.items() if "${" in str(text)}
    if not referring:
        return
    readable = {key: text for key, text in referring.items() if _is_plain_reference(text)}
    for key in referring.keys() - readable.keys():
        _refuse(document, key, "only references such as ${TRAINING.SEED} are read; write the value")
    whole: dict[str, Tree] = {}
    for key, value in {**defaults, **given}.items():
        if key not in referring or key in readable:
            set_key(whole, key, _as_text(value))
    for key, value in _select(whole, list(readable)).items():
        if value is None:
            _refuse(document, key, "a reference must name a key that holds a value")
        else:
            set_key(document.tree, key, value)


def _is_plain_reference(text: Tree) -> bool:
    return "${" not in _REFERENCE.sub("", str(text))


def _select(whole: dict[str, Tree], keys: list[str]) -> dict[str, Tree]:
    """What each key holds once references are followed; None where one leads nowhere."""
    # Imported here: most configurations hold no reference and need not wait for it.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    container = OmegaConf.create(whole)
    found: dict[str, Tree] = {}
    for key in keys:
        try:
            value = OmegaConf.select(container, key)
            value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        except (OmegaConfBaseException, RecursionError):
            value = None
        found[key] = None if value is None or isinstance(value, dict) else _as_plain(value)
    return found


def _refuse(document: Document, key: str, reason: str) -> None:
    shown = show(dict(leaves(document.tree))[key])
    document.problems.append(f"{document.place(key)}: {key} is {shown}; {reason}")
    document.spoiled.add(key)
    remove_key(document.tree, key)


def _as_text(value: object) -> Tree:
    """A value for OmegaConf, its references in the upper case of the keys."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: match.group().upper(), str(value))
    if isinstance(value, (list, tuple)):
        return [_as_text(item) for item in value]
    return as_tree(value)


def _as_plain(value: object) -> Tree:
    if isinstance(value, list):
        return [_as_plain(item) for item in value]
    return Plain(value) if isinstance(value, str) else as_tree(value)


# --------
# From a document to a Config: every key found, read and checked, every problem in one list.

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
        elif key and not (key in _GONE and is_null(value)):
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
