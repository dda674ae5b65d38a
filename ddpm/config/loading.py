"""Loading: YAML and `SECTION.KEY=value` overrides as a Config, or all mistakes with their places.

    config = load("configs/digits.yaml", ["TRAINING.NETWORK.TIMESTEPS=250"])

Every mistake is found at once and named with its file and line, its value, what is allowed and the
nearest valid name. Keys are matched without regard to case.

PyYAML's safe parser gives the text of each scalar, which the type of its key reads later: OmegaConf
and YAML 1.1 turn `1:30` into 90, `on` into true and `007` into 7 before a type is known, and know
no lines. OmegaConf resolves `${SECTION.KEY}`; it does not merge, since creating and merging one
configuration takes it 30 ms, ten times a whole `load`, and a sweep builds a configuration a cell.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from pydantic import ValidationError

from ddpm.config.rules import PATHS, violations, without_effect
from ddpm.config.schema import (
    Config,
    ImageGeneration,
    Plain,
    Value,
    allowed,
    keys_under,
    nearest,
    plain,
    section,
    sections_under,
    show,
)
from ddpm.errors import InputError, as_typed

T = TypeVar("T")
# Text (Plain or quoted), Python scalars (from_dict), lists and sections of these.
Tree = dict[str, "Tree"] | list["Tree"] | str | int | float | bool | None

COMMAND_LINE = "command line"
# Keys of earlier versions: their null stands in the training_config.yaml of every run of that time.
_GONE = ("IMAGE_GENERATION.DYNAMIC_THRESHOLD", "IMAGE_GENERATION.BETWEEN")

# The field's words for what has another name here (docs/glossary.md); read as ours, and said so.
FIELD_KEYS = {
    "PREDICTION_TYPE": "TRAINING.PRED_TYPE",
    "CLASS_DROPOUT_PROB": "TRAINING.LABEL_DROP",
    "NUM_TRAIN_TIMESTEPS": "TRAINING.NETWORK.TIMESTEPS",
    "NUM_INFERENCE_STEPS": "IMAGE_GENERATION.NUM_STEPS",
    "ETA": "IMAGE_GENERATION.DDIM_ETA",
    "GUIDANCE_SCALE": "IMAGE_GENERATION.GUIDANCE",
    "CFG_SCALE": "IMAGE_GENERATION.GUIDANCE",
}
FIELD_VALUES = {
    **dict.fromkeys(("epsilon", "eps"), "noise"),
    **dict.fromkeys(("sample", "x0", "x_start"), "image"),
    **dict.fromkeys(("v_prediction", "v"), "velocity"),
}
log = logging.getLogger(__name__)

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Both quotes and both block styles; the C and the Python parser mark plain text differently.
_QUOTES = ("'", '"', "|", ">")
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
_MOST_BYTES = 1_000_000
_MOST_NODES = 20_000
_DEEPEST = 20

_NULL = ("", "~", "null")
_WORDS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
# No octal (010), no sexagesimal (1:30), no 1_000: what two YAML readers disagree on is refused.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,39})")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_VARIABLE = re.compile(r"\$[A-Za-z_{]")
_REFERENCE = re.compile(r"\$\{\s*[A-Za-z_][A-Za-z0-9_.]*\s*\}")


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
        """The place of a key, as file:line; the document where it was not given."""
        return self.places.get(key, self.source)

    def refuse(self, key: str, text: str) -> None:
        """Notes a problem of a key, once."""
        line = f"{self.place(key)}: {text}"
        if line not in self.problems:
            self.problems.append(line)


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


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, `SECTION.KEY=value` overrides put over it.

    Raises InputError with every problem, one line each.
    """
    document = read_file(Path(path))
    if "BASE" in document.tree:
        raise InputError(
            f"{path}: has a BASE, so it is a sweep; `{as_typed('sweep', path)}` runs it"
        )
    apply_overrides(document, overrides)
    built = build(document)
    return _accept(built if built.config is None else _as_given(document, built.config))


def load_generation(path: str | Path, overrides: Iterable[str] = ()) -> ImageGeneration:
    """The IMAGE_GENERATION of a YAML file, whatever else it says, each value checked by itself.

    Raises InputError.
    """
    document = read_file(Path(path))
    apply_overrides(document, overrides)
    resolve(document)
    document.tree = {k: v for k, v in document.tree.items() if k == "IMAGE_GENERATION"}
    found = validate(document, _Generation)
    if document.problems or found is None:
        raise InputError(list(dict.fromkeys(document.problems)))
    return found.IMAGE_GENERATION


def from_dict(plain: Mapping[str, object], *, source: str = "config") -> Config:
    """The configuration in nested dicts, as `to_dict` gives them. Raises InputError."""
    return _accept(build(read_plain(plain, source)))


def _as_given(document: Document, config: Config) -> Built:
    """A configuration that is right by itself, judged by the places its values come from.

    Runs of earlier versions are not judged so: a value at its default is none that was given.
    """
    for key in PATHS:
        text = reduce(getattr, key.split("."), cast(Any, config)) or ""
        if (text.startswith("~") or _VARIABLE.search(text)) and not Path(text).exists():
            what, advice = "~", f"write {os.path.expanduser(text)}"
            if not text.startswith("~"):
                what, advice = "$NAME", "write the path, or let the shell write it: KEY=$NAME"
            document.refuse(key, f"{key} is {show(text)}; {what} is not replaced here, {advice}")
    for key, line in without_effect(config):
        if line and document.places.get(key) == COMMAND_LINE:
            document.refuse(key, f"{key} has no effect: {line}")
    problems = tuple(document.problems)
    return Built(config=None if problems else config, problems=problems, impossible=())


def _accept(built: Built) -> Config:
    if built.config is None:
        raise InputError(built.problems)
    return built.config


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


def read_yaml(path: str | Path) -> dict[str, object]:
    """Dotted key -> value in a YAML file; a key that this version does not have stays text.

    For files that were accepted once: nothing is checked but that they can be read. Raises
    InputError as read_file.
    """
    return {key: plain(value) for key, value in _flat(_typed(read_file(Path(path)).tree, Config))}


def _flat(tree: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def read_text(text: str, source: str) -> Document:
    """The document in YAML text; `source` names it in messages."""
    document = Document(source)
    tree = _Reader(document).tree(text)
    if isinstance(tree, dict):
        document.tree = tree
        _in_our_words(document)
    elif tree is not None:
        document.problems.append(f"{source}: holds no sections; write SECTION: and its keys below")
    return document


def _in_our_words(document: Document) -> None:
    """Puts what stands under a key of the field, at the top or in a section, under its key here."""
    for key in [key for key, _ in leaves(document.tree)]:
        *above, name = key.split(".")
        if name not in FIELD_KEYS or (above and above[0] not in sections_under(Config)):
            continue
        ours, below = FIELD_KEYS[name], document.tree
        for section_name in above:
            below = cast(dict[str, Tree], below[section_name])
        value = below.pop(name)
        above_ours, _, last = ours.rpartition(".")
        there = _at_key(document.tree, above_ours)
        if isinstance(there, dict) and last in there:
            document.refuse(key, f"{key} is {ours}, which is given too; keep one")
            continue
        set_key(document.tree, ours, value)
        document.places[ours] = document.place(key)
        _say(name, ours)


@cache
def _say(word: str, ours: str) -> None:
    """Once, what a word of the field is called here."""
    log.warning("%s is called %s here (docs/glossary.md)", word, ours)


def read_plain(mapping: object, source: str) -> Document:
    """The document in nested Python dicts, as from `config.to_dict`."""
    document = Document(source)

    def upper(value: object, key: str) -> Tree:
        if not isinstance(value, dict):
            return as_tree(value)
        found: dict[str, Tree] = {}
        for name, item in value.items():
            below = f"{key}.{str(name).upper()}".lstrip(".")
            if str(name).upper() in found:
                document.refuse(below, f"{below} is given twice; keep one")
            found[str(name).upper()] = upper(item, below)
        return found

    tree = upper(mapping, "")
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
    top, _, last = key.rpartition(".")
    if last in FIELD_KEYS and (not top or top in sections_under(Config)):
        _say(last, FIELD_KEYS[last])
        key = FIELD_KEYS[last]
    plain = value.strip()
    is_text = key in keys_under(Config) and str in _kinds(keys_under(Config)[key].annotation)
    # Quotes are YAML's: 'null' is a word; all else is as the shell gave it, # and * and a: b.
    if is_text and plain[:1] not in _QUOTES[:2] and plain.lower() not in _NULL:
        return key, Plain(plain)
    document = Document(f"{COMMAND_LINE}: {key}")
    tree = _Reader(document).tree(value)
    if document.problems:
        raise InputError(document.problems)
    return key, tree


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
            document.refuse(key, f"{key} is given twice; keep one")
        elif key in sections_under(Config):
            _refuse_for_section(document, Config, key, value)
        else:
            set_key(document.tree, key, value)
        seen.add(key)


class _Reader:
    """YAML text as a tree with upper-case keys; places and problems go to the document.

    Tags, merge keys and keys given twice are refused.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self.is_file = not document.source.startswith(COMMAND_LINE)
        self.count = 0

    def tree(self, text: str) -> Tree:
        """The tree of the text; None of an empty one."""
        source = self.document.source
        try:
            self._refuse_depth(text)
            node = yaml.compose(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark if self.is_file else None
            line = f":{mark.line + 1}" if mark else ""
            reason = error.problem or error.context
            raise InputError(f"{source}{line}: not YAML: {reason}") from None
        except yaml.YAMLError as error:
            raise InputError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None
        return None if node is None else self._build(node, "", 0)

    def _refuse_depth(self, text: str) -> None:
        # libyaml's composer recurses: 30,000 brackets would end the interpreter
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEEPEST:
                self._stop(event)

    def _stop(self, place: yaml.Node | yaml.Event) -> None:
        raise InputError(f"{self._at(place)}: too many or too deeply nested values; write them out")

    def _at(self, place: yaml.Node | yaml.Event) -> str:
        source = self.document.source
        return f"{source}:{place.start_mark.line + 1}" if self.is_file else source

    def _refuse(self, node: yaml.Node, text: str) -> None:
        self.document.problems.append(f"{self._at(node)}: {text}")

    def _build(self, node: yaml.Node, key: str, depth: int) -> Tree:
        self.count += 1
        # an alias is walked wherever it stands: ten of ten of ten are many
        if self.count > _MOST_NODES or depth > _DEEPEST:
            self._stop(node)
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self._refuse(node, f"{key} has the tag {node.tag}; give a plain value")
            self.document.spoiled.add(key)
        if isinstance(node, yaml.MappingNode):
            return self._section(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, key, depth + 1) for item in node.value]
        if node.style in _QUOTES:
            return str(node.value)
        return None if node.value.lower() in _NULL else Plain(node.value)

    def _section(self, node: yaml.MappingNode, prefix: str, depth: int) -> dict[str, Tree]:
        found: dict[str, Tree] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value).upper() if name_node.id == "scalar" else "?"
            key = f"{prefix}.{name}".lstrip(".")
            if name_node.id != "scalar" or name == "<<":
                self._refuse(name_node, "merge keys and lists as keys are not read; write keys out")
            elif name in found:
                first = self.document.places.get(key, "above")
                self._refuse(name_node, f"{key} is given twice, first at {first}; keep one")
            else:
                self.document.places[key] = self._at(name_node)
                found[name] = self._build(value_node, key, depth + 1)
        return found


def as_tree(value: object) -> Tree:
    """A Python value as a tree: tuples become lists."""
    return cast(Tree, plain(value))


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
    for each in sections:
        below = tree.get(each)
        if not isinstance(below, dict):
            below = tree[each] = {}
        tree = below
    tree[name] = value


def copy_tree(tree: dict[str, Tree]) -> dict[str, Tree]:
    """A copy whose sections can be changed."""
    return {k: copy_tree(v) if isinstance(v, dict) else v for k, v in tree.items()}


def _at_key(tree: Tree, key: str) -> Tree:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def resolve(document: Document) -> None:
    """Replaces each reference of the document by what that key holds there, or by its default.

    Resolvers such as `${oc.env:HOME}` are refused: a configuration says what is computed, is copied
    into every run, and must not carry what one machine's environment holds.
    """
    given = dict(leaves(document.tree))
    referring = {key: text for key, text in given.items() if "${" in str(text)}
    if not referring:
        return
    # Imported here: most configurations hold no reference and need not wait for it.
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    whole: dict[str, Tree] = {}
    readable = [key for key, text in referring.items() if "${" not in _REFERENCE.sub("", str(text))]
    defaults = {
        key: one.default for key, one in keys_under(Config).items() if not one.is_required()
    }
    for key, value in {**defaults, **given}.items():
        if key not in referring or key in readable:
            set_key(whole, key, _in_upper_case(value))
    container = OmegaConf.create(whole)
    for key, text in referring.items():
        reason, value = "a reference must name a key that holds a value", None
        if key not in readable:
            reason = "only references such as ${TRAINING.SEED} are read; write the value"
        else:
            try:
                value = OmegaConf.select(container, key)
                value = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
            except (OmegaConfBaseException, RecursionError):
                value = None
        if value is None or isinstance(value, dict):
            document.refuse(key, f"{key} is {show(text)}; {reason}")
            document.spoiled.add(key)
        else:
            set_key(document.tree, key, _as_plain(value))


def _in_upper_case(value: object) -> Tree:
    """A value for OmegaConf, its references in the upper case of the keys."""
    if isinstance(value, str):
        return _REFERENCE.sub(lambda match: match.group().upper(), str(value))
    if isinstance(value, (list, tuple)):
        return [_in_upper_case(item) for item in value]
    return as_tree(value)


def _as_plain(value: object) -> Tree:
    if isinstance(value, list):
        return [_as_plain(item) for item in value]
    return Plain(value) if isinstance(value, str) else as_tree(value)


@section
class _Generation:
    IMAGE_GENERATION: ImageGeneration = ImageGeneration()


def build(document: Document) -> Built:
    """The document as a Config, checked; changes the document (references, problems)."""
    resolve(document)
    config = validate(document, Config)
    # rules see what can be seen: one run shows the mistakes of values and of their combinations
    known, unknown = config, set[str]()
    if known is None or document.spoiled:
        known = cast(Config, _Known(_stand_in(document), document.spoiled, unknown))
    broken = list(violations(known, unknown))
    for text, _ in broken:
        document.refuse(text.split()[0], text)
    return Built(
        config=None if document.problems else config,
        problems=tuple(dict.fromkeys(document.problems)),
        impossible=tuple(text for text, is_impossible in broken if is_impossible),
    )


def validate(document: Document, root: type[T]) -> T | None:
    """The document as a `root`, None where a value is refused: problems go to the document, with
    the keys they spoil.
    """
    for key in _GONE:
        if root is Config and _at_key(document.tree, key) is None:
            above = _at_key(document.tree, key.rpartition(".")[0])
            if isinstance(above, dict):
                above.pop(key.rpartition(".")[2], None)
    try:
        return cast(T, _validator(root).validate_python(_typed(document.tree, root)))
    except ValidationError as error:
        for one in error.errors(include_url=False):
            _explain(document, root, [str(part) for part in one["loc"]], one["type"])
    return None


def read_value(document: Document, root: type, key: str, value: Tree) -> Value:
    """One key's value; refused, it is None, the problem noted and the key spoiled."""
    section_name, _, name = key.rpartition(".")
    cls = sections_under(root)[section_name]
    read = _read(value, _kinds_of(cls)[name])
    try:
        whole = _validator(cls).validate_python({**_placeholders(cls), name: read})
    except ValidationError:
        _refuse_value(document, root, key, value)
        return None
    return cast(Value, getattr(whole, name))


def nearest_key(key: str, root: type = Config) -> str | None:
    """The known key or section that a wrong dotted key most likely stands for."""
    if root is Config and (ours := FIELD_KEYS.get(key.rpartition(".")[2].upper())):
        return ours
    known = [name for name in (*sections_under(root), *keys_under(root)) if name]
    above, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == above}
    everywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
    for names in (siblings, everywhere):
        match = nearest(name, names)
        if match is not None:
            return names[match]
    return nearest(key, known)


def _validator(cls: type) -> Any:
    return cast(Any, cls).__pydantic_validator__


def _typed(tree: Mapping[str, Tree], cls: type) -> dict[str, object]:
    """The tree with its text read as the types of the keys; a section left empty is {}."""
    fields = cast(Any, cls).__pydantic_fields__
    found: dict[str, object] = {
        name: {} for name, one in fields.items() if one.is_required() and _is_section(one)
    }
    for name, value in tree.items():
        if name not in fields:
            found[name] = value
        elif not _is_section(fields[name]):
            found[name] = _read(value, _kinds_of(cls)[name])
        elif value is None or isinstance(value, dict):
            found[name] = _typed(value or {}, fields[name].annotation)
        else:
            found[name] = value
    return found


def _is_section(one: Any) -> bool:
    return is_dataclass(one.annotation)


def _read(value: Tree, kinds: Sequence[Any]) -> object:
    """YAML text as a Python value of one of the types; what is none stays text, to be refused."""
    if isinstance(value, list):
        lists = [kind for kind in kinds if get_origin(kind) is tuple]
        items = _kinds(get_args(lists[0])[0]) if lists else ()
        return tuple(_read(item, items) for item in value) if items else value
    if not isinstance(value, str):
        return value
    for kind in kinds:
        if get_origin(kind) is Literal:
            choices = {one.lower(): one for one in get_args(kind)}
            word = value.lower()
            if word not in choices and (ours := FIELD_VALUES.get(word)) in choices:
                _say(word, str(ours))
                word = str(ours)
            return choices.get(word, value)
        if kind is bool and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        if kind is int and _INTEGER.fullmatch(value):
            return int(value)
        if kind is float and len(value) <= 40 and _NUMBER.fullmatch(value):
            return float(value)
    return str(value)


@cache
def _kinds_of(cls: type) -> Mapping[str, tuple[Any, ...]]:
    """The types that each key of a section may have."""
    fields = cast(Any, cls).__pydantic_fields__
    return {name: _kinds(field.annotation) for name, field in fields.items()}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of a union, without what Annotated says of them."""
    if get_origin(hint) is Annotated:
        return _kinds(get_args(hint)[0])
    if get_origin(hint) in (tuple, Literal) or not get_args(hint):
        return (hint,)
    return tuple(kind for one in get_args(hint) for kind in _kinds(one))


def _explain(document: Document, root: type, loc: list[str], kind: str) -> None:
    """Notes what pydantic found at a place, in our words."""
    sections, keys = sections_under(root), keys_under(root)
    prefixes = [".".join(loc[: n + 1]) for n in range(len(loc))]
    key = next((each for each in prefixes if each not in sections), prefixes[-1])
    if any(key == each or key.startswith(each + ".") for each in document.spoiled):
        return
    if key in keys and kind == "missing":
        document.spoiled.add(key)
        document.refuse(key, f"{key} is missing; give it: {keys[key].description}")
    elif key in keys:
        _refuse_value(document, root, key, _at_key(document.tree, key))
    elif key in sections:
        _refuse_for_section(document, root, key, _at_key(document.tree, key))
    else:
        for leaf, _ in leaves(_at_key(document.tree, key), key):
            _refuse_unknown(document, root, leaf, key)


def _refuse_value(document: Document, root: type, key: str, value: Tree) -> None:
    document.spoiled.add(key)
    if isinstance(value, dict):
        document.refuse(key, f"{key} is a section; give a value, not keys")
        return
    section_name, _, name = key.rpartition(".")
    one = keys_under(root)[key]
    literals = [kind for kind in _kinds(one.annotation) if get_origin(kind) is Literal]
    choices = [choice for kind in literals for choice in get_args(kind)]
    match = nearest(value, choices) if isinstance(value, str) else None
    hint = "give one" if one.is_required() else f"the default is {show(one.default)}"
    words = allowed(sections_under(root)[section_name], name)
    advice = hint if match is None else f"did you mean {match}?"
    document.refuse(key, f"{key} is {show(value)}; allowed: {words}; {advice}")


def _refuse_for_section(document: Document, root: type, key: str, value: Tree) -> None:
    if value is None or value == {}:
        return
    first = next(iter(cast(Any, sections_under(root)[key]).__pydantic_fields__))
    document.refuse(
        key,
        f"{key} is {show(value)} but {key} is a section; give its keys, such as {key}.{first}",
    )
    document.spoiled |= {one for one in keys_under(root) if one.startswith(key + ".")}


def _refuse_unknown(document: Document, root: type, key: str, unknown: str) -> None:
    guess = nearest_key(unknown, root)
    tops = ", ".join(name for name in sections_under(root) if name and "." not in name)
    hint = f"did you mean {guess}?" if guess else f"the sections are {tops}"
    place = unknown if unknown in document.places else key
    document.refuse(place, f"{unknown} is no key; {hint}")
    if guess:
        # What was meant is not known to be its default: no rule should judge that.
        document.spoiled.add(guess + key.removeprefix(unknown))


class _Known:
    """A configuration that notes the keys read of it whose values are no user's."""

    def __init__(
        self, section: object, spoiled: set[str], unknown: set[str], prefix: str = ""
    ) -> None:
        self._section, self._spoiled, self._unknown = section, spoiled, unknown
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        key, value = self._prefix + name, getattr(self._section, name)
        if is_dataclass(value):
            return _Known(value, self._spoiled, self._unknown, key + ".")
        if key in self._spoiled:
            self._unknown.add(key)
        return value


def _stand_in(document: Document) -> Config:
    """The document's valid values, over defaults; what must be given is there in any case."""
    tree: dict[str, Any] = {"DATASET": _placeholders(sections_under(Config)["DATASET"])}
    for key, value in leaves(document.tree):
        if key in keys_under(Config) and key not in document.spoiled:
            set_key(tree, key, value)
    return cast(Config, _validator(Config).validate_python(_typed(tree, Config)))


def _placeholders(cls: type) -> dict[str, str]:
    fields = cast(Any, cls).__pydantic_fields__
    return {name: "placeholder" for name, one in fields.items() if one.is_required()}
