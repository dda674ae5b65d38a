"""References `${SECTION.KEY}` between configuration values, resolved by OmegaConf.

Only plain references are read. Resolvers such as `${oc.env:HOME}` are refused: a configuration says
what is computed, is copied into every run, and must not carry what one machine's environment holds.
"""

import re
from collections.abc import Mapping

from ddpm.reading import Document, Tree, as_tree, leaves, remove_key, set_key
from ddpm.values import Plain, Value, show

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
