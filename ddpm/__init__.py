"""Noise schedules, prediction types and timesteps of diffusion models, trained and compared."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def attach(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose __init__.pyi names what it offers (PEP 562).

    Each name loads its module on first use, so `import ddpm.config` stays free of torch. Standard
    library alone: `ddpm doctor` answers where no package is installed.
    """
    homes = {
        alias.name: node.module
        for node in ast.parse(Path(file).with_suffix(".pyi").read_text()).body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }

    def load(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        module = import_module(f"{package}.{home or name}")
        value = getattr(module, name) if home else module
        setattr(sys.modules[package], name, value)
        return value

    return load, lambda: sorted(homes)


__getattr__, __dir__ = attach(__name__, __file__)
