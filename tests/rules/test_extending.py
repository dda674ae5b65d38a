"""docs/extending.md is true: its changes apply to the code as it is, and its examples then run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tree import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
IN_PYTHON = "A network, schedule and data of your own"
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def apply(change: str, root: Path) -> None:
    """Makes a change in the tree at root: + lines follow the line above them, - lines go."""
    head, *lines = change.splitlines()
    path = root / head.removeprefix("--- ")
    text = path.read_text().splitlines() if path.exists() else []
    place = 0
    for sign, line in ((line[:1], line[1:]) for line in lines):
        if sign == "+":
            text.insert(place, line)
            place += 1
            continue
        assert text.count(line) == 1, f"{head}: {line!r} is there {text.count(line)} times"
        place = text.index(line) + (sign == " ")
        if sign == "-":
            del text[place]
    path.write_text("\n".join(text) + "\n")


@pytest.mark.slow
def test_what_the_page_adds_works(tmp_path: Path) -> None:
    """All of it in one copy of the tree, and every example in a namespace of its own."""
    for folder in ("ddpm", "configs", "launch"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    examples = []
    for title, section in SECTIONS.items():
        changes, parts = blocks(section, "diff"), blocks(section, "python")
        assert parts and (changes or title == IN_PYTHON), title
        for change in changes:
            apply(change, tmp_path)
        examples.append("\n".join(parts))
    done = subprocess.run(
        [sys.executable, "-c", f"for example in {examples!r}: exec(example, {{}})"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "originals" in done.stdout
    assert "#PBS -l select=" in done.stdout
