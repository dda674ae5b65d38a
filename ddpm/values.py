"""One configuration value: its limits, and reading it as its field's type.

YAML gives text: `Plain` marks what stood there unquoted, so that `NAME: on` and `NAME: 007` stay
text while `COMPILE: on` and `TIMESTEPS: 7` do not.
"""

import json
import math
import re
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

Value = bool | int | float | str | None | tuple["Value", ...]

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
LOCAL_FOLDER = r"(?i:auto|off)|/(?s:.+)"
_NULL = ("", "~", "null")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
# No octal (010), no sexagesimal (1:30), no 1_000: what two YAML readers disagree on is refused.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LARGEST = 2**31 - 1


class Plain(str):
    """A YAML scalar that stood unquoted: the field's type decides what it means."""


class Refused(ValueError):
    """A value that its field does not allow; the text says what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """What one key means and allows. Limits hold for every item of a list."""

    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    pattern: str | None = None
    min_items: int = 0
    is_unique: bool = False
    is_machine: bool = False


def read_value(value: object, hint: object, limits: Option) -> Value:
    """`value` (YAML text or a Python value) as the type `hint`, inside its limits; else Refused."""
    kinds = _kinds(hint)
    if is_null(value):
        if type(None) in kinds:
            return None
        raise Refused(describe(hint, limits))
    for kind in (kind for kind in kinds if kind is not type(None)):
        read = _read_list(value, kind, limits) if _is_list(kind) else _read_one(value, kind, limits)
        if read is not None:
            return read
    raise Refused(describe(hint, limits))


def is_null(value: object) -> bool:
    """Whether a value means null: None, or one of YAML's words for it, unquoted."""
    return value is None or (isinstance(value, Plain) and value.lower() in _NULL)


def _read_list(value: object, kind: object, limits: Option) -> tuple[Value, ...] | None:
    if not isinstance(value, (list, tuple)) or len(value) < limits.min_items:
        return None
    item_kind, *rest = typing.get_args(kind)
    if rest[0] is not Ellipsis and len(value) != 1 + len(rest):
        return None
    items = tuple(_read_one(item, item_kind, limits) for item in value)
    is_repeated = limits.is_unique and len(set(items)) < len(items)
    return None if None in items or is_repeated else items


def _read_one(value: object, kind: object, limits: Option) -> Value:
    """One scalar as `kind`, or None when it is not one or lies outside the limits."""
    if is_null(value):
        return None
    if kind is bool:
        return _read_bool(value)
    if kind is str:
        return _read_text(value, limits)
    number = _read_number(value, is_integer=kind is int)
    return number if number is not None and _is_inside(number, limits) else None


def _read_bool(value: object) -> bool | None:
    if isinstance(value, str):
        return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}.get(value.lower())
    return value if isinstance(value, bool) else None


def _read_number(value: object, *, is_integer: bool) -> int | float | None:
    if isinstance(value, str):
        if not (_INTEGER if is_integer else _NUMBER).fullmatch(value) or len(value) > 40:
            return None
        return int(value) if is_integer else float(value)
    if isinstance(value, bool) or not isinstance(value, int if is_integer else (int, float)):
        return None
    if is_integer:
        return int(value)
    return float(value) if abs(value) <= 1e300 else None


def _is_inside(number: int | float, limits: Option) -> bool:
    return (
        math.isfinite(number)
        and (limits.low is None or number >= limits.low)
        and number <= (_LARGEST if limits.high is None else limits.high)
        and (limits.above is None or number > limits.above)
        and (limits.below is None or number < limits.below)
    )


def _read_text(value: object, limits: Option) -> str | None:
    # a newline may be part of a path, however odd; other control characters are accidents
    if not isinstance(value, str) or not value.replace("\n", "").isprintable() or value == "???":
        return None
    if limits.choices:
        return {choice.lower(): choice for choice in limits.choices}.get(value.lower())
    if limits.pattern is not None and not re.fullmatch(limits.pattern, value):
        return None
    return str(value)


def describe(hint: object, limits: Option) -> str:
    """What is allowed, in words."""
    kinds = _kinds(hint)
    words = [_describe_kind(kind, limits) for kind in kinds if kind is not type(None)]
    return ", or ".join(words + (["null"] if type(None) in kinds else []))


def _describe_kind(kind: object, limits: Option) -> str:
    if _is_list(kind):
        item_kind, *rest = typing.get_args(kind)
        count = "" if rest[0] is Ellipsis else f"{1 + len(rest)} "
        some = "non-empty list" if limits.min_items else "list"
        each = _describe_kind(item_kind, limits)
        different = ", all different" if limits.is_unique else ""
        return f"a {some} of {count}values, each {each}{different}"
    if limits.choices:
        return "one of " + ", ".join(limits.choices)
    if kind is bool:
        return "true or false"
    if kind is str:
        named = "a name of at most 64 letters, digits, '.', '_', '-'"
        words = {None: "text", SAFE_NAME: named, LOCAL_FOLDER: "auto, off or an absolute path"}
        return words.get(limits.pattern, "non-empty text")
    return f"{'an integer' if kind is int else 'a finite number'}{_describe_range(limits)}"


def _describe_range(limits: Option) -> str:
    low, high = limits.low, limits.high
    if low is not None and high is not None:
        return f" from {low} to {high}"
    words = [
        f"{word} {bound}"
        for word, bound in (
            ("of at least", low),
            ("above", limits.above),
            ("below", limits.below),
            ("of at most", high),
        )
        if bound is not None
    ]
    return " " + " and ".join(words) if words else ""


def _kinds(hint: object) -> tuple[object, ...]:
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _is_list(kind: object) -> bool:
    return typing.get_origin(kind) is tuple


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, if any is close."""
    by_lower = {name.lower(): name for name in known}
    match = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def show(value: object) -> str:
    """A value as one would write it in YAML, on one line, shortened."""
    if isinstance(value, Plain):
        text = value if value.isprintable() else repr(str(value))
    elif isinstance(value, dict):
        text = "a section"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: object) -> object:
    """Tuples as lists, for YAML and JSON."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def advice(value: object, limits: Option, default: object, others: Sequence[str] = ()) -> str:
    """What to do about a refused value: the nearest choice, or the default."""
    match = nearest(value, limits.choices or others) if isinstance(value, str) else None
    if match is not None:
        return f"did you mean {match}?"
    return f"the default is {show(default)}"
