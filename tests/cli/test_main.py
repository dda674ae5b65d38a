"""The command `ddpm`: its list of commands, how it shows itself, and what it installs."""

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from ddpm.cli import init, main
from ddpm.errors import InputError, Interrupted, run_main
from tests.support.tree import ROOT

LAUNCHERS = sorted(
    set(main.COMMANDS)
    - {*("doctor", "export", "import-v3", "init", "cancel", "logs", "completion")}
)


def run(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=250
    )


def test_the_list_names_every_command_and_every_command_is_a_file() -> None:
    shown = run("-m", "ddpm", "--help")
    assert shown.returncode == 0
    for name, line in main.COMMANDS.items():
        assert f"  {name:12}{line}\n" in shown.stdout
        assert (ROOT / "ddpm" / "cli" / f"{name.replace('-', '_')}.py").is_file()
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} == set(LAUNCHERS)


def test_the_version_is_that_of_the_package() -> None:
    assert run("-m", "ddpm", "--version").stdout == f"ddpm {metadata.version('ddpm')}\n"


def test_a_command_that_is_none_is_refused_with_the_nearest() -> None:
    done = run("-m", "ddpm", "trian")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: 'trian' is no command; did you mean train? give one of ")


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("called", ["ddpm {}", "python launch/{}.py"])
def test_help_shows_how_the_command_was_called(
    name: str, called: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = called.format(name)
    monkeypatch.setattr(sys, "argv", shown.removeprefix("python ").split())
    with pytest.raises(SystemExit, match="^0$"):
        main.launch(name, ["--help"])
    text = capsys.readouterr().out
    assert "%%" not in text
    assert text.startswith(f"usage: {shown.removeprefix('python ')} [-h]")
    examples = [line for line in text.splitlines() if line.startswith(f"  {shown} ")]
    assert examples and all(line.count("python ") == called.count("python ") for line in examples)


def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "needy.py").write_text("import wandb_workspaces_\n")
    monkeypatch.setitem(main.EXTRAS, "wandb_workspaces_", "reports")
    monkeypatch.setattr("ddpm.cli.__path__", [str(tmp_path)])
    assert main.launch("needy", []) == 2
    assert "'wandb_workspaces_': pip install 'ddpm[reports]'" in capsys.readouterr().err


def test_init_copies_the_folders_and_overwrites_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "my project"
    assert init.main([str(folder)]) == 0
    for name in ("slurm", "configs", "sweeps"):
        for path in (ROOT / name).iterdir():
            copy = folder / name / path.name
            assert copy.read_bytes().startswith(path.read_bytes())
            assert copy.stat().st_mode == path.stat().st_mode
    for path in folder.rglob("*.md"):
        links = re.findall(r"\]\(([^)#:]+)[^):]*\)", path.read_text())
        assert [link for link in links if not (path.parent / link).exists()] == []
    assert f"\nDDPM_PYTHON={sys.executable}\n" in (folder / "slurm" / "site.env").read_text()
    (folder / "slurm" / "site.env").unlink()
    with pytest.raises(InputError, match="configs is there already(.*\n)*.*sweeps is there"):
        init.main([str(folder)])
    assert not (folder / "slurm" / "site.env").exists()


@pytest.mark.long
def test_the_wheel_brings_the_folders_and_no_other_package(tmp_path: Path) -> None:
    """Made from the sdist, installed without its dependencies in an environment of its own."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    made = "from setuptools import build_meta as b; print(b.build_sdist({!r}))"
    copy = tmp_path / "tree"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", copy], check=True)
    done = run("-c", made.format(str(tmp_path)), cwd=copy)
    assert done.returncode == 0, done.stderr
    archive = tmp_path / done.stdout.split()[-1]
    with tarfile.open(archive) as tar:
        assert all(member.isdir() or member.isreg() for member in tar)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", archive],
        check=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ddpm"}
    for name in ("slurm", "configs", "sweeps"):
        for path in (ROOT / name).iterdir():
            assert f"ddpm/share/{name}/{path.name}" in names
    assert all(f"{path.parent.relative_to(ROOT)}/{path.name}" in names for path in stubs())

    venv.create(tmp_path / "env", system_site_packages=False, with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([*pip, f"--python={python}", "install", "--no-deps", wheel], check=True)
    command = [tmp_path / "env" / "bin" / "ddpm", "init", "project"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "project" / "sweeps" / "pred_types.yaml").is_file()


def stubs() -> list[Path]:
    """Files beside the modules that the package needs at run time."""
    kinds = ("*.pyi", "*.css", "*.js", "*.html")
    return [path for kind in kinds for path in (ROOT / "ddpm").rglob(kind)]


@pytest.mark.slow
def test_a_reader_that_leaves_ends_no_work(tmp_path: Path) -> None:
    """As `ddpm ... | head -0`: what is left to say is lost, the exit code is the work's."""
    (tmp_path / "talk.py").write_text(
        "import pathlib, sys\n"
        "def main(arguments):\n"
        "    for line in range(9999): print('many words', flush=line % 99 == 0)\n"
        "    pathlib.Path(arguments[0]).touch()\n"
        "    return int(arguments[1])\n"
    )
    code = (
        "import sys, ddpm.cli; from ddpm.cli.main import launch; "
        f"ddpm.cli.__path__.append({str(tmp_path)!r}); sys.exit(launch('talk', sys.argv[1:]))"
    )
    for exit_code in ("0", "4"):
        kept = tmp_path / exit_code
        words = [sys.executable, "-c", code, str(kept), exit_code]
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        os.close(writer)
        assert (done.returncode, done.stderr) == (int(exit_code), "") and kept.exists()


def test_an_interruption_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    def ctrl_c() -> int:
        raise KeyboardInterrupt

    def stopped() -> int:
        raise Interrupted("stopped at step 3")

    assert run_main(ctrl_c) == run_main(stopped) == 75
    said = "stopped; run the same command again to continue\nstopped at step 3\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["st"], {"status"}),
        (["train", "--re"], {"--resume"}),
        (["train", "TRAINING.PRED"], {"TRAINING.PRED_TYPE="}),
        (
            ["train", "TRAINING.PRED_TYPE", "=", "v"],
            {"velocity"},
        ),
        (["train", "TRAINING.COMPILE", "="], {"true", "false"}),
        (["sample", "IMAGE_GENERATION.NUM_S"], {"IMAGE_GENERATION.NUM_STEPS="}),
        (["sample", "TRAINING.S"], set()),
        (["sample", "--format", ""], {"shards", "npz", "adm", "png"}),
        (["status", "l"], {"latest"}),
        (["logs", "0"], {"01234567"}),
        (["import-v3", "--d"], {"--dry-run"}),
        (["completion", "--h"], {"--help"}),
    ],
)
def test_bash_completes_commands_options_keys_values_and_runs(
    typed: list[str], offered: set[str], tmp_path: Path, completion: str
) -> None:
    for run_id in ("01234567", "abcdef01"):
        (tmp_path / "training_outputs" / "a" / "b" / f"cosine_{run_id}").mkdir(parents=True)
    words = " ".join(map(shlex.quote, ["ddpm", *typed]))
    script = (
        f"compopt() {{ :; }}\n{completion}\nCOMP_WORDS=({words})\nCOMP_CWORD={len(typed)}\n"
        '_ddpm\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-uc", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "" and set(done.stdout.split()) == offered


@pytest.fixture(scope="module")
def completion() -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main.launch("completion", []) == 0
    return printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["Dockerfile", "slurm/ddpm.def"])
def test_images_copy_all_that_an_installation_needs(tmp_path: Path, recipe: str) -> None:
    """No image is built: what its recipe copies makes a wheel that brings the folders."""
    text = (ROOT / recipe).read_text()
    copied = re.findall(r"^COPY (.*) \S+$", text, re.M)
    if not copied:
        copied = re.findall(r"^    (?!cd)(\S+) /ddpm\S*$", text, re.M)
    names = " ".join(copied).split()
    assert sorted(names) == sorted(
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    )
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    extras = re.findall(r"[\w-]+", re.findall(r'"\.\[(.*?)\]"', text)[0])
    known = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(known["optional-dependencies"])
    done = run("-c", "from setuptools import build_meta as b; b.build_wheel('out')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("ddpm-*.whl")
    assert "ddpm/share/configs/digits.yaml" in zipfile.ZipFile(wheel).namelist()
