"""The rooms of the house, read from the folders: imports go down, and through a room's face."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter

import pytest

from tests.support.tree import MODULES, ROOMS, ROOT, face, foreign, imports, room_of, targets

# From the ground up. A room imports what stands before it, through the other room's __init__.
FLOORS = (
    "config diffusion runs data sampling metrics training sweep report tracking cluster cli "
    "experiments launch"
).split()
MOST_FILES = 18
LONGEST_CHAIN = 13
ONLY_ROOM = {"ray": "cluster", "submitit": "cluster", "wandb": "tracking"}
HEAVY = {"torch", "ray", "wandb", "submitit"}


def source_of(module: str) -> str:
    return MODULES[module].read_text()


def trespasses(module: str, source: str) -> list[str]:
    """One line for each import of a module that goes up, or reaches past the face of a room."""
    here, bad = room_of(module), []
    for line, target, name in imports(source):
        if target.partition(".")[0] not in ("ddpm", "experiments", "launch"):
            if target == ".":
                bad.append(f"{module}:{line} imports relatively")
            continue
        there = room_of(targets(target, name))
        if there in ("", here):
            continue
        if (module, there) == ("ddpm.__main__", "cli"):
            continue
        if here == "" or FLOORS.index(there) > FLOORS.index(here):
            bad.append(f"{module}:{line} imports {target}, which is on a floor above it")
        if there in ROOMS and there != "cli" and target not in ("ddpm", f"ddpm.{there}"):
            bad.append(f"{module}:{line} reaches past ddpm/{there}/__init__.py to {target}")
        if here == "diffusion":
            bad.append(f"{module}:{line} imports {target}; the mathematics stands on torch alone")
    return bad


@pytest.mark.slow
def test_imports_go_down_and_through_the_face_of_a_room() -> None:
    assert not [bad for module in MODULES for bad in trespasses(module, source_of(module))]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ddpm.errors", "def f():\n    from ddpm.config import load"),
        ("ddpm.data.order", "from ddpm import report"),
        ("ddpm.data.order", "from .index import Index"),
        ("ddpm.metrics.manifold", "from ddpm.data.index import Index"),
        ("ddpm.diffusion.unet", "from ddpm.config import Config"),
        ("ddpm.training.trainer", "if True:\n    from experiments import claims"),
    ],
)
def test_an_import_that_goes_up_or_past_a_face_is_seen(module: str, source: str) -> None:
    assert trespasses(module, source)


def test_every_folder_is_a_room_and_the_package_itself_is_nearly_empty() -> None:
    folders = {p.name for p in (ROOT / "ddpm").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders == set(ROOMS) == set(FLOORS) - {"experiments", "launch"}
    files = {path.name for path in (ROOT / "ddpm").glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "errors.py", "distributed.py"}


def test_a_room_holds_about_a_dozen_files() -> None:
    files = Counter(room_of(m) for m, path in MODULES.items() if path.name != "__init__.py")
    assert not [room for room in ROOMS if files[room] > MOST_FILES]


@pytest.mark.slow
def test_a_docstring_begins_with_a_noun_or_a_verb() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for module in MODULES for n in ast.walk(ast.parse(source_of(module)))]
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    clauses = ("What", "How", "Where", "Who", "Which", "When")
    assert not [text for text in texts if text.split(maxsplit=1)[:1] and text.split()[0] in clauses]


@pytest.mark.slow
def test_no_class_name_is_defined_twice() -> None:
    trees = [ast.parse(source_of(module)) for module in MODULES]
    names = Counter(n.name for tree in trees for n in tree.body if isinstance(n, ast.ClassDef))
    twice = [name for name, times in names.items() if times > 1 and not name.startswith("_")]
    assert not twice


def test_the_face_of_a_room_names_only_what_others_use() -> None:
    public = [ROOT / "ddpm" / "__init__.pyi", *(ROOT / "docs").glob("*.[mp]*")]
    words = {room: Counter() for room in ROOMS} | {"": Counter()}
    for path in [*MODULES.values(), *public]:
        room = path.parent.name if path.parent.name in ROOMS else ""
        words[room].update(set(re.findall(r"\w+", path.read_text())))
    for room in ROOMS:
        spare = [n for n in face(room) if not any(w[n] for r, w in words.items() if r != room)]
        assert not spare, f"ddpm/{room}/__init__.pyi names {spare}, which nobody else uses"


def test_no_name_of_a_face_is_also_a_file_of_its_room() -> None:
    """The package's attribute would be the one or the other, by what was imported first."""
    for room in ROOMS:
        folder = ROOT / "ddpm" / room
        stub = (folder / "__init__.pyi").read_text() if face(room) else ""
        names = set(re.findall(r"^from \.\w+ import (\w+)", stub, flags=re.MULTILINE))
        assert not names & {path.stem for path in folder.glob("*.py")}, room


@pytest.mark.slow
def test_no_module_imports_itself_in_a_circle_and_chains_are_short() -> None:
    graph = {
        module: {targets(t, n) for _, t, n in imports(source_of(module))} & set(MODULES) - {module}
        for module in MODULES
    }
    longest: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():
        longest[module] = 1 + max((longest[name] for name in graph.get(module, ())), default=0)
    assert max(longest.values()) <= LONGEST_CHAIN, max(longest, key=longest.__getitem__)


@pytest.mark.slow
def test_a_framework_stays_in_its_room() -> None:
    for module in (m for m in MODULES if m.startswith("ddpm.")):
        used = {top.partition("_")[0] for top in foreign(source_of(module))}
        assert all(ONLY_ROOM.get(top, room_of(module)) == room_of(module) for top in used), module
        assert room_of(module) not in ("report", "sweep") or not used & HEAVY, module
