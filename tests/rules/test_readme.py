"""The documents are true: commands run, paths and links exist, tables are the code's own.

A command is a line `$ ...` of a ```console block. Each is run here made small, or named in
ELSEWHERE with the reason. ```python blocks are run as they stand.
"""

import ast
import contextlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from ddpm import errors
from ddpm.cli import main
from ddpm.errors import run_main
from experiments import __main__ as results
from tests.support.tiny_training import overrides
from tests.support.tree import ROOMS, ROOT

README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "slurm/README.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]

SMALL = overrides(
    "TRAINING.HYPER_PARAMETERS.EPOCHS=1",
    "TRAINING.NETWORK.TIMESTEPS=4",
    "TRAINING.INLINE_GEN.REVERSE_STRIDE=2",
    "TRAINING.EMA_POWER=[0.05,0.1]",
    "IMAGE_GENERATION.NUM_GEN_IMAGES=10",
    "IMAGE_GENERATION.NUM_STEPS=4",
)
DATA_NOT_HERE = "needs Debian's dataset-fashion-mnist"
A_CLUSTER = "needs a cluster"
MINUTES = "takes minutes"
ELSEWHERE = {
    "python launch/sweep.py sweeps/pred_types.yaml": MINUTES,
    "python launch/sweep.py sweeps/full_grid.yaml": MINUTES,
    "ddpm sweep sweeps/asha.yaml": MINUTES,
    "python launch/sweep.py sweeps/a_a.yaml": MINUTES,
    "python launch/sweep.py sweeps/density.yaml": MINUTES,
    "python launch/sweep.py sweeps/fair_pred_types.yaml": MINUTES,
    "python launch/sweep.py sweeps/modern.yaml": MINUTES,
    "python launch/pack.py /usr/share/datasets/fashion-mnist data/fashion_mnist": DATA_NOT_HERE,
    "sbatch -N2 --gpus-per-node=4 slurm/train.sh configs/cifar10.yaml": A_CLUSTER,
    "sbatch --gpus-per-node=4 slurm/sweep.sh sweeps/full_grid.yaml": A_CLUSTER,
    "python launch/sweep.py sweeps/full_grid.yaml --cluster slurm": A_CLUSTER,
    "python launch/sample.py RUN --num 50000 --cluster slurm": A_CLUSTER,
    "python launch/sample.py RUN --verify": "needs the images of the line above it",
    "RAY_ADDRESS=auto python launch/train.py configs/fashion_mnist.yaml CLUSTER.NUM_WORKERS=8": (
        A_CLUSTER
    ),
    "python launch/evaluate.py /usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz "
    "--against /usr/share/datasets/fashion-mnist": DATA_NOT_HERE,
    "python launch/report.py training_outputs/sweeps/pred_types "
    "--baseline SCHEDULER=linear,PRED_TYPE=noise": "needs a finished sweep",
    "python -m experiments forecast configs/digits.yaml": "tests/experiments/test_forecast.py",
    "python -m experiments forecast configs/fashion_mnist.yaml "
    "DATASET.PATH=/usr/share/datasets/fashion-mnist": DATA_NOT_HERE,
    "python -m experiments few_steps --short": "tests/experiments/test_published.py",
    "python -m experiments hidden_plane": "tests/experiments/test_published.py",
    "python -m experiments skip_prefix RUN": "needs more than the 4 timesteps trained here",
    "python -m torch.distributed.run --standalone --nproc-per-node=2 launch/train.py "
    "configs/digits.yaml": "tests/cluster/test_run_training.py",
    "python run.py --config configs/digits.yaml --training": "tests/cli/test_import_v3.py",
    "ddpm import-v3 X.yaml model.h5 --dry-run": "tests/cli/test_import_v3.py",
    "ddpm import-v3 X.yaml model.h5": "tests/cli/test_import_v3.py",
    "ddpm export RUN OUT --to diffusers": "tests/cli/test_export.py",
    "ddpm export RUN OUT --to diffusers --label 3": "tests/cli/test_export.py",
    "python benchmarks/overhead.py": MINUTES,
    "python benchmarks/sampling.py --rounds 8 --steps 3": MINUTES,
    "python benchmarks/sampling.py --rounds 5 --steps 10 --batch 256": MINUTES,
    "python benchmarks/training.py --precision fp32 bf16": MINUTES,
    "python benchmarks/metrics.py memory": MINUTES,
    "python benchmarks/metrics.py speed": MINUTES,
    "python benchmarks/quality.py training_outputs/sweeps/pred_types --num 1000": (
        "needs a finished sweep"
    ),
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every command shown in the documents, without what follows as a comment."""
    shown = "".join(block for page in PAGES for block in blocks(page.read_text(), "console"))
    lines = [line[2:] for line in shown.splitlines() if line.startswith("$ ")]
    return list(dict.fromkeys(re.split(r"\s{2,}#", line)[0].strip() for line in lines))


COMMANDS = commands()
MAKE = [command for command in COMMANDS if command.startswith("make ")]
HERE = [command for command in COMMANDS if command not in MAKE and command not in ELSEWHERE]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=250)


def small(command: str, out: Path) -> list[str]:
    """A command of the README as it is run here: little work, results in `out`."""
    words = shlex.split(command)
    if words[1] == "launch/train.py":
        given = {word.partition("=")[0] for word in words}
        words += [word for word in SMALL if word.partition("=")[0] not in given]
        words.append(f"TRAINING.OUTPUT_DIR={out}")
    if words[1] == "launch/evaluate.py":
        words += ["--num", "3" if "--ema-curve" in words else "64", "--features", "pixels"]
    if words[1] == "launch/pack.py":
        words[-1] = str(out / words[-1])
    if "--dry-run" in words and "--no-probe" not in words:
        words.append("--no-probe")
    return words


def answered(words: list[str]) -> int:
    """The exit code of a command, given in this process."""
    if words[:3] == ["python", "-m", "experiments"]:
        return run_main(lambda: results.main(words[3:]))
    return main.launch(Path(words[1]).stem, words[2:])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.fixture(scope="module")
def trained(out: Path) -> Path:
    """The run directory that the README's first training names in its last line, made small."""
    printed = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(printed):
        assert answered(small("python launch/train.py configs/digits.yaml", out)) == 0
    run_dir = Path(printed.getvalue().split()[-1])
    assert (run_dir / "DONE.json").is_file(), printed.getvalue()
    return run_dir


@pytest.mark.slow
@pytest.mark.parametrize("command", HERE)
def test_a_command_of_the_readme_runs(
    command: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    words = small(command, out)
    if "RUN" in words:
        run_dir = request.getfixturevalue("trained")
        words = [str(run_dir) if word == "RUN" else word for word in words]
    monkeypatch.chdir(ROOT)
    code = answered(words)
    errors = capsys.readouterr().err
    assert code == 0, errors
    assert "Traceback" not in errors


def test_there_are_commands_to_run_and_every_exception_is_shown() -> None:
    assert len(HERE) >= 5 and len(MAKE) >= 3
    assert not set(ELSEWHERE) - set(COMMANDS)


def test_make_knows_its_targets() -> None:
    for command in MAKE:
        done = run("make", "--dry-run", *shlex.split(command)[1:])
        assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "python")
    made: dict[str, Any] = {}
    exec(example, made)
    samples = made["samples"]
    assert samples.shape == (64, 8, 8, 1) and samples.dtype == np.uint8
    assert not list(tmp_path.iterdir()), "the example writes files it does not mention"


OURS = r"(?:configs|sweeps|launch|ddpm|docs|benchmarks|tests|slurm|\.ci)/[\w./-]*\w"


def test_every_path_named_in_a_document_exists() -> None:
    for page in PAGES:
        text = re.sub(r"^```diff\n.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        named = set(re.findall(rf"(?<![\w/.-]){OURS}", text))
        assert not [name for name in sorted(named) if not (ROOT / name).exists()], page.name


def test_every_key_named_in_a_document_is_one() -> None:
    table = (ROOT / "docs" / "configuration.md").read_text()
    keys = set(re.findall(r"^\| `([A-Z_0-9.]+)`", table, flags=re.MULTILINE))
    sections = "|".join({key.partition(".")[0] for key in keys})
    assert len(keys) > 100
    for page in PAGES:
        named = set(re.findall(rf"\b(?:{sections})(?:\.[A-Z_0-9]+)+\b", page.read_text()))
        known = {key for key in named if any(f"{one}.".startswith(f"{key}.") for one in keys)}
        assert not named - known - {"IMAGE_GENERATION.KEY"}, page.name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_every_link_leads_somewhere() -> None:
    links = [(page, to) for page in PAGES for to in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    for page, target in links:
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_is_the_codes_own(build: ModuleType) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == build.configuration_page(), "run `make docs`"


@pytest.mark.slow
def test_the_file_map_is_the_codes_own(build: ModuleType) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    assert page == build.architecture_page(), "run `make docs`"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]


def test_the_site_places_pages_that_are_there() -> None:
    named = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert len(named) > 20 and {ROOT / name for name in named} <= {*PAGES, ROOT / "report.md"}


def test_the_readme_is_short_and_names_every_room_and_every_page() -> None:
    assert len(README.splitlines()) <= 150
    rooms = re.findall(r"^\| \[(\w+)\]\(ddpm/\1\)", README, flags=re.MULTILINE)
    assert sorted([*rooms, "cli"]) == ROOMS
    assert not [page.name for page in PAGES[1:] if str(page.relative_to(ROOT)) not in README]


@pytest.mark.slow
def test_every_module_says_what_it_is(build: ModuleType) -> None:
    silent = [str(path) for path in build.sources() if len(build.first_sentence(path)) < 10]
    assert not silent


def test_the_exit_codes_of_the_readme_are_the_codes_own() -> None:
    shown = {int(code) for code in re.findall(r"^\| (\d+) \|", README, flags=re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.DdpmError)}
    assert shown == codes | {0, 1}


@pytest.mark.long
def test_the_notebook_shows_what_its_cells_give(tmp_path: Path) -> None:
    """Its code in one process; each cell ends with what stands below it, losses to a twentieth."""
    cells = json.loads((ROOT / "docs/first_steps.ipynb").read_text())["cells"]
    names: dict[str, object] = {}
    for cell in (one for one in cells if one["cell_type"] == "code"):
        *statements, last = ast.parse("".join(cell["source"])).body
        ends_with_value = isinstance(last, ast.Expr)
        body = ast.Module([*statements, *([] if ends_with_value else [last])], [])
        exec(compile(body, "first_steps.ipynb", "exec"), names)
        shown = [out["data"] for out in cell["outputs"] if out["output_type"] == "execute_result"]
        assert len(shown) == ends_with_value
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "first_steps.ipynb", "eval"), names)
            stored, found = "".join(shown[0]["text/plain"]), repr(value)
            if "image/png" not in shown[0]:
                numbers = [re.findall(r"\d+\.?\d*", text) for text in (stored, found)]
                assert len(numbers[0]) == len(numbers[1]) > 4
                assert re.findall("[a-z_]+", stored) == re.findall("[a-z_]+", found)
                if "Name: loss" in stored:
                    np.testing.assert_allclose(*(np.float64(n) for n in numbers), rtol=0.05)
