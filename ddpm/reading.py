"""YAML text as a tree with upper-case keys, and the place (file:line) of every key.

PyYAML's safe parser (the one below OmegaConf) gives the text of each scalar, which its field's type
reads later: OmegaConf's own reader turns `1:30` into 90 and `on` into true before a type is known.
Tags, merge keys and keys given twice are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from ddpm.errors import InputError
from ddpm.values import Plain, plain

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
