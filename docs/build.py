"""Writes what the documents quote from the code: docs/configuration.md, the file map of README.md.

python docs/build.py            also: make docs
"""

import ast
from pathlib import Path

from ddpm import config

ROOT = Path(__file__).resolve().parent.parent
MAP_START, MAP_END = "<!-- file map: make docs -->", "<!-- end of the file map -->"
HEAD = """# Configuration

Every key of a YAML file, generated from the code by `make docs`. The keys are DDPM v3's, so its
files run as they are; keys that v3 lacks default to its behaviour or to "off". Case does not matter
in keys and in named choices. On the command line `SECTION.KEY=value` after the file changes a key:
`TRAINING.NETWORK.TIMESTEPS=250`, `TRAINING.EMA_DECAYS=[0.99,0.999]`, `DATASET.LABEL_KEY=null`.

Every mistake in a file is reported at once, one line each, before anything is written (exit code
2).

"""


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    return HEAD + config.explain()


def sources() -> list[Path]:
    """The files of the map: library, published results, command lines."""
    tops = ("ddpm", "experiments", "launch")
    files = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in files if path.name != "__init__.py"]


def first_sentence(path: Path) -> str:
    """What a module says it is: its docstring up to the first full stop."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    return text.split(". ")[0].rstrip(".:")


def file_map() -> str:
    """A table with one line a file: lines, and the first sentence of its docstring."""
    rows = ["| file | lines | what it is |", "|---|---:|---|"]
    for path in sources():
        name, lines = path.relative_to(ROOT), len(path.read_text().splitlines())
        rows.append(f"| [{name}]({name}) | {lines} | {first_sentence(path)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Rewrites both documents in place."""
    (ROOT / "docs" / "configuration.md").write_text(configuration_page())
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(MAP_START)
    after = rest.partition(MAP_END)[2]
    readme.write_text(f"{before}{MAP_START}\n\n{file_map()}\n{MAP_END}{after}")


if __name__ == "__main__":
    main()
