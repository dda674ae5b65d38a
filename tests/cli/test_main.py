"""The command `ddpm`: its list of commands, how it shows itself, and what it installs."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from ddpm.cli import init, main
from ddpm.errors import InputError
from tests.support.tree import ROOT

LAUNCHERS = sorted(set(main.COMMANDS) - {"doctor", "export", "import-v3", "init"})


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
        assert f"  {name:10}{line}\n" in shown.stdout
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
