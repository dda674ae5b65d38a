"""What documents quote from the code: docs/configuration.md, the map of docs/architecture.md.

python docs/build.py            also: make docs
"""

import ast
from pathlib import Path

from ddpm import config

ROOT = Path(__file__).resolve().parent.parent
KEYS, ARCHITECTURE = ROOT / "docs" / "configuration.md", ROOT / "docs" / "architecture.md"
MAP_START, MAP_END = "<!-- file map: make docs -->", "<!-- end of the file map -->"
HEAD = """# Configuration

Every key of a YAML file, generated from the code by `make docs`. The keys are DDPM v3's, so its
files run as they are; keys that v3 lacks default to its behaviour or to "off", but for two of
inpainting, KNOWN_NOISE and RESAMPLES ([why](sampling.md#tasks)). Case does not matter in keys and
in named choices. On the command line `SECTION.KEY=value` after the file changes a key:
`TRAINING.NETWORK.TIMESTEPS=250`, `TRAINING.EMA_DECAYS=[0.99,0.999]`, `DATASET.LABEL_KEY=null`.

Every mistake in a file is reported at once, one line each, before anything is written (exit code
2).

`ddpm.config.json_schema()` gives the same keys, types and limits as a JSON schema, with which an
editor completes and checks the keys as they are typed.

"""


def configuration_page() -> str:
    """The text of docs/configuration.md."""
    return HEAD + config.explain()


def sources() -> list[Path]:
    """The files of the map: the rooms and the published results."""
    files = [path for top in ("ddpm", "experiments") for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in files if path.name not in ("__init__.py", "__main__.py")]


def first_sentence(path: Path) -> str:
    """The docstring of a module up to the first full stop."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    return text.split(". ")[0].rstrip(".:").replace("|", "\\|")


def architecture_page() -> str:
    """The text of docs/architecture.md, its map made anew: a line a file."""
    before, _, rest = ARCHITECTURE.read_text().partition(MAP_START)
    rows = ["| file | what it is |", "|---|---|"]
    for path in sources():
        name = path.relative_to(ROOT)
        rows.append(f"| [{name}](../{name}) | {first_sentence(path)} |")
    table = "\n".join(rows)
    return f"{before}{MAP_START}\n\n{table}\n\n{MAP_END}{rest.partition(MAP_END)[2]}"


def main() -> None:
    """Rewrites both documents in place."""
    KEYS.write_text(configuration_page())
    ARCHITECTURE.write_text(architecture_page())


if __name__ == "__main__":
    main()
