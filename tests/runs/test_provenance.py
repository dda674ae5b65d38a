"""Provenance says what ran, where and how, and nothing that is secret."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ddpm.runs import provenance


def test_an_attempt_is_plain_json_with_versions_and_machine() -> None:
    facts = provenance.attempt(["launch/train.py", "a b.yaml"])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["command"] == "launch/train.py 'a b.yaml'"
    for package in ("torch", "ray", "wandb"):
        assert facts[package] == metadata.version(package)
    assert facts["python"] == sys.version.split()[0]
    assert facts["cores"] >= 1 and facts["host"] and facts["cpu"]


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["--api-key", "abc", "x.yaml"], "--api-key *** x.yaml"),
        (["--token=abc"], "--token=***"),
        (["WANDB_API_KEY=abc", "x"], "WANDB_API_KEY=*** x"),
        (["https://user:pw@host/data.npz"], "https://***@host/data.npz"),
        (["DATASET.LABEL_KEY=labels"], "DATASET.LABEL_KEY=labels"),
        (["x", "value-of-a-secret"], "x ***"),
        (["PATH=value-of-a-secret/more"], "PATH=***/more"),
    ],
)
def test_credentials_on_the_command_line_are_masked(
    command: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_ACCESS_TOKEN", "value-of-a-secret")
    assert provenance.masked(command) == shown


@pytest.mark.parametrize("key", ["source_sha256", "torch", "cpu_capability", "gpus"])
def test_what_decides_bits_is_compared(key: str) -> None:
    before = provenance.attempt(["x"])
    assert provenance.changes(before, before | {"command": "y", "host": "z"}) == []
    changed = before | {key: ["GPU 9"] if key == "gpus" else "9.9"}
    (line,) = provenance.changes(before, changed)
    assert "9" in line and "since the last attempt" in line


def test_the_commit_and_its_changes_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repo" / "ddpm"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    assert provenance.git_state() is None
    git = [shutil.which("git") or "git", "-C", str(tmp_path / "repo")]
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, *identity, "commit", "-q", "-m", "x"], check=True)
    state = provenance.git_state()
    assert state is not None and len(state["commit"]) == 40 and state["dirty"] is False
    digest = provenance.source_sha256()
    (package / "a.py").write_text("2")
    state = provenance.git_state()
    assert state is not None and state["dirty"] is True
    assert provenance.source_sha256() != digest


def test_a_frozen_copy_knows_its_commit_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "repo" / "ddpm"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("1")
    monkeypatch.setattr(provenance, "_PACKAGE", package)
    state = {"commit": "c" * 40, "dirty": True}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "git_state", lambda: state)
        home = provenance.frozen(tmp_path / "sweep")
    assert provenance.attempt(["x"])["frozen"] is None
    digest = provenance.source_sha256()
    assert home == tmp_path / "sweep" / "code" / digest[:12]
    (package / "a.py").write_text("2")
    assert provenance.frozen(tmp_path / "sweep") != home
    assert len(list((tmp_path / "sweep" / "code").iterdir())) == 2
    monkeypatch.setattr(provenance, "_PACKAGE", home / "ddpm")
    assert provenance.source_sha256() == digest and provenance.git_state() == state
    assert provenance.attempt(["x"])["frozen"] == str(home)
    assert not list(home.rglob("__pycache__"))
