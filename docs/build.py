"""Made from the code: docs/configuration.md, the map of docs/architecture.md, configs/schema.json.

python docs/build.py            also: make docs
"""

import ast
import json
import re
from pathlib import Path

from ddpm import config

ROOT = Path(__file__).resolve().parent.parent
KEYS, ARCHITECTURE = ROOT / "docs" / "configuration.md", ROOT / "docs" / "architecture.md"
SCHEMA = ROOT / "configs" / "schema.json"
MAP_START, MAP_END = "<!-- file map: make docs -->", "<!-- end of the file map -->"
HEAD = """# Configuration

Every key of a YAML file, generated from the code by `make docs`. The keys are DDPM v3's, so its
files run as they are; keys that v3 lacks default to its behaviour or to "off", but for two of
inpainting, KNOWN_NOISE and RESAMPLES ([why](sampling.md#tasks)). Case does not matter in keys and
in named choices. On the command line `SECTION.KEY=value` after the file changes a key:
`TRAINING.NETWORK.TIMESTEPS=250`, `TRAINING.EMA_DECAYS=[0.99,0.999]`, `DATASET.LABEL_KEY=null`.

Every mistake in a file is reported at once, one line each, before anything is written (exit code
2).

[configs/schema.json](../configs/schema.json) has the same keys, types and limits as a JSON schema.
The first line of each file of [configs](../configs) names it, so that an editor that reads such
lines (VS Code with the YAML extension, and others with yaml-language-server) completes and checks
keys as they are typed.

These common names are accepted in place of the keys and values here, with a message:
`PRED_TYPE: epsilon`, `sample`, `x0`, `v_prediction`; and in place of their keys, also without a
section, `PREDICTION_TYPE`, `NUM_TRAIN_TIMESTEPS`, `NUM_INFERENCE_STEPS`, `GUIDANCE_SCALE`,
`CFG_SCALE`, `CLASS_DROPOUT_PROB`, `ETA`. They are stored under this project's names, so the run
and its id are the same ([glossary](glossary.md)).

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
    sentence = re.split(r"(?<!\bFig)(?<!\bal)\. ", text)[0]
    return sentence.rstrip(".:").replace("|", "\\|")


def architecture_page() -> str:
    """The text of docs/architecture.md, its map made anew: a line a file."""
    before, _, rest = ARCHITECTURE.read_text().partition(MAP_START)
    rows = ["| file | what it is |", "|---|---|"]
    for path in sources():
        name = path.relative_to(ROOT)
        rows.append(f"| [{name}](../{name}) | {first_sentence(path)} |")
    table = "\n".join(rows)
    return f"{before}{MAP_START}\n\n{table}\n\n{MAP_END}{rest.partition(MAP_END)[2]}"


def schema() -> str:
    """The text of configs/schema.json."""
    return json.dumps(config.json_schema(), indent=1) + "\n"


def main() -> None:
    """Rewrites all of them in place."""
    KEYS.write_text(configuration_page())
    SCHEMA.write_text(schema())
    ARCHITECTURE.write_text(architecture_page())


if __name__ == "__main__":
    main()
