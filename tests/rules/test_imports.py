"""Imports that stay quick, and what no file may contain: forbidden calls, paths of a machine."""

import ast
import importlib
import io
import os
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

from tests.support.tree import MODULES, ROOT

HEAVY = ("torch", "ray", "webdataset", "sklearn", "wandb", "matplotlib", "submitit")
LAUNCHERS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))

MISTYPED = ["TRAINING.SEEED=1"]
CPU_SECONDS = 2.0


@cache
def tracked() -> list[Path]:
    """Every file git knows or would add; a tree without git is walked instead."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    names = listed.stdout.split("\n") if listed.returncode == 0 else map(str, ROOT.rglob("*.py"))
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def run_python(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd or ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_every_module_imports() -> None:
    for module in MODULES:
        importlib.import_module(module)


@pytest.mark.slow
def test_checking_input_loads_no_heavy_package() -> None:
    config, sweep = (str(ROOT / name) for name in ("configs/digits.yaml", "sweeps/pred_types.yaml"))
    steps = (
        "import ddpm.errors, ddpm.runs.storage, ddpm.data.index, ddpm.data.staging",
        "import ddpm.cluster.status, ddpm.cli.main",
        f"from ddpm import config; loaded = config.load({config!r})",
        f"from ddpm.sweep import plan; plan.load_sweep({sweep!r})",
        "from ddpm.data import source_problems; assert source_problems(loaded) == []",
    )
    report = f"print(*sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = run_python("-c", "\n".join(["import sys", *(f"{step}\n{report}" for step in steps)]))
    assert done.returncode == 0, done.stderr
    assert dict(zip(steps, done.stdout.split("\n"), strict=False)) == dict.fromkeys(steps, "")


@pytest.mark.slow
def test_the_mathematics_loads_nothing_of_ours_but_errors() -> None:
    loaded = ours("import ddpm.diffusion as room; [getattr(room, name) for name in dir(room)]")
    others = {name for name in loaded if not name.startswith("ddpm.diffusion")}
    assert "ddpm.diffusion.unet" in loaded and others <= {"ddpm", "ddpm.errors"}


@pytest.mark.slow
def test_the_trainer_loads_at_most_25_modules_of_ours() -> None:
    loaded = ours("import ddpm.training.trainer")
    assert "ddpm.training.step" in loaded and len(loaded) <= 25, sorted(loaded)


def ours(code: str) -> set[str]:
    """The modules of ours that some code loads, in a process of its own."""
    shown = "import sys; print(*(n for n in sys.modules if n.partition('.')[0] == 'ddpm'))"
    done = run_python("-c", f"{code}; {shown}")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        *(([f"launch/{name}.py", "--help"], 0, "usage:") for name in LAUNCHERS),
        (["launch/train.py", "configs/digits.yaml", *MISTYPED], 2, "TRAINING.SEEED"),
        (["launch/sweep.py", "sweeps/pred_types.yaml", *MISTYPED], 2, "TRAINING.SEEED"),
        (["-m", "ddpm", "sample", "no/run"], 2, "no/run is no folder"),
        (["-m", "ddpm", "sample", "no/run", "--num", "9"], 2, "no/run is no folder"),
        (["-m", "ddpm", "evaluate", "no/run"], 2, "no/run does not exist"),
        (["-m", "ddpm", "evaluate", "no/run", "--ema-curve"], 2, "no/run is no folder"),
        (["-m", "ddpm", "report", "no/run"], 2, "no/run is neither a sweep"),
        (["-m", "ddpm", "pack", "no/data", "out"], 2, "no/data does not exist"),
        (["-m", "ddpm", "status", "no/run"], 2, "no/run is no run directory"),
        (["-m", "ddpm", "cancel", "no/run"], 2, "no/run is no run"),
        (["-m", "ddpm", "logs", "no/run"], 2, "no/run: no train.log"),
        (["-m", "ddpm", "export", "no/run", "out", "--to", "torch"], 2, "no/run is no folder"),
        (["-m", "ddpm", "import-v3", "no/c.yaml", "no/w.h5"], 2, "no/c.yaml: no such file"),
        (["-m", "ddpm", "init", "."], 2, "is there already"),
    ],
    ids=lambda given: " ".join(given[:4]) if isinstance(given, list) else "",
)
def test_help_and_refusals_come_at_once_without_any_heavy_package(
    arguments: list[str], code: int, shown: str
) -> None:
    # -X importtime names every module as it is imported.
    before = sum(os.times()[2:4])
    done = run_python("-X", "importtime", *arguments)
    cpu_seconds = sum(os.times()[2:4]) - before
    assert done.returncode == code, done.stderr[-2000:]
    assert shown in done.stdout + done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in loaded and not loaded & set(HEAVY)
    assert cpu_seconds < CPU_SECONDS


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {"torch.load", "torch.save", "os.system", "os.popen", "eval", "exec"}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, '' for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def unsafe(source: str) -> list[str]:
    """What in a source file could run code that came in as data: one 'line N: what' each."""
    bad = []
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            bad += [f"line {line}: {n}" for n in names if n.partition(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            if dotted(node.func) in FORBIDDEN_CALLS:
                bad.append(f"line {line}: {dotted(node.func)}")
            for word in node.keywords:
                given = isinstance(word.value, ast.Constant) and bool(word.value.value)
                if word.arg in ("shell", "allow_pickle") and given:
                    bad.append(f"line {line}: {word.arg}=True")
            if (
                isinstance(node.func, ast.Attribute)
                and node.func.attr == "decode"
                and is_dataset(node)
            ):
                bad.append(f"line {line}: webdataset's .decode()")
    return bad


def is_dataset(call: ast.Call) -> bool:
    """Whether a `.decode()` hangs on a chain that opens with wds.WebDataset."""
    return any(dotted(n).endswith("WebDataset") for n in ast.walk(call.func))


@pytest.mark.slow
def test_nothing_runs_code_that_came_as_data() -> None:
    ours = [p for p in tracked() if p.suffix == ".py" and ROOT / "tests" not in p.parents]
    assert len(ours) > 50
    assert not {path: found for path in ours if (found := unsafe(path.read_text()))}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import torch\n    torch.load('x')",
        "import os\nos.system('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "np.load('x', allow_pickle=True)",
        "wds.WebDataset('x').shuffle(3).decode()",
    ],
)
def test_code_that_could_be_run_from_data_is_seen(source: str) -> None:
    assert unsafe(source)


# Folders of one machine or one user. System folders (/usr, /dev, /proc, /tmp) are everybody's.
MACHINE_PATH = re.compile(r"(?<![\w.}/:])/(?:home|root|work|Users|mnt|scratch|data|opt)/[\w.-]+")


def texts(path: Path) -> str:
    """What of a file may hold a path: all of it; of a Python file its text and comments."""
    if path.suffix != ".py":
        return path.read_text(errors="replace")
    kinds = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1))
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return "\n".join(token.string for token in tokens if token.type in kinds)


def test_no_path_of_one_machine_in_the_tree() -> None:
    suspects = [path for path in tracked() if path.suffix != ".png" and may_name_one(path)]
    assert not {path: found for path in suspects if (found := MACHINE_PATH.findall(texts(path)))}


def may_name_one(path: Path) -> bool:
    """Whether it has such a path anywhere: tokens of a whole tree take half a minute."""
    return MACHINE_PATH.search(path.read_text(errors="replace")) is not None


def test_a_path_of_one_machine_is_seen() -> None:
    assert MACHINE_PATH.findall('open("/ho' + 'me/ada/data.npz")') == ["/ho" + "me/ada"]
