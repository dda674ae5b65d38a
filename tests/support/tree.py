"""The tree under test: its root, its modules, what each of them imports."""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def module_name(path: Path) -> str:
    """Dotted name of a source file: ddpm/report/page.py -> ddpm.report.page."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for top in ("ddpm", "experiments", "launch")
    for path in sorted((ROOT / top).rglob("*.py"))
}
ROOMS = sorted(path.parent.name for path in (ROOT / "ddpm").glob("*/__init__.py"))


@cache
def imports(source: str) -> list[tuple[int, str, str]]:
    """(line, module, name) of everything imported anywhere in a source; name "" for `import m`.

    Imports are absolute in this project: a relative one is given as the module ".".
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." if node.level else str(node.module)
            found += [(node.lineno, module, alias.name) for alias in node.names]
    return found


@cache
def face(room: str) -> dict[str, str]:
    """{name: module} of what a room lets others import, read from its __init__.pyi."""
    stub = ROOT / "ddpm" / room / "__init__.pyi"
    if not stub.exists():
        return {}
    return {
        alias.asname or alias.name: f"ddpm.{room}.{node.module or alias.name}"
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def room_of(module: str) -> str:
    """ddpm.report.page -> report; ddpm.errors, ddpm -> ""; experiments.claims -> experiments."""
    top, _, rest = module.partition(".")
    return (rest.split(".")[0] if rest.split(".")[0] in ROOMS else "") if top == "ddpm" else top


def targets(module: str, name: str) -> str:
    """The module of ours behind `from module import name`; the face of a room is seen through."""
    if module == "ddpm" and name in ROOMS:
        return f"ddpm.{name}"
    if module.startswith("ddpm.") and module.count(".") == 1 and room_of(module):
        return face(room_of(module)).get(name, module)
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


def foreign(source: str) -> set[str]:
    """Top-level names of the third-party packages that a source file imports."""
    tops = {module.partition(".")[0] for _, module, _ in imports(source)}
    return tops - {*sys.stdlib_module_names, "ddpm", "experiments", "launch", "."}
