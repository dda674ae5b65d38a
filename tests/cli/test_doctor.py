"""The doctor sees what is there, survives what is not, and gives away nothing."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.cli import doctor

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = (
    "Python|torch|CPU|memory|GPU( 0)?|CUDA|bf16|torch.compile|NCCL|gloo|disk|Ray|"
    "sbatch|srun|SLURM job|submitit|W&B|numpy|webdataset|pillow|safetensors|scikit-learn|"
    "omegaconf|vl-convert-python|jinja2|pandas|rich"
)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without keys, jobs or clusters."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC", "SLURM_JOB_ID", "RAY_ADDRESS", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def finding(name: str) -> doctor.Diagnosis:
    return next(each for each in doctor.examine() if each.name == name)


def put_command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_every_subject_has_a_line_that_says_what_it_means(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    missing = set(re.sub(r"\(.*?\)\?", "", NAMES).split("|"))
    for line in lines:
        name = re.match(rf"({NAMES})  +(yes|no) ", line)
        assert name and len(line.split("  ")[-1].strip()) >= 5, line
        missing.discard(name[1].removesuffix(" 0"))
    assert not missing


def test_json_is_the_same_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told] == [each.name for each in doctor.examine()]
    assert all(set(each) == {"name", "is_found", "version", "meaning"} for each in told)


def test_a_terminal_gets_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    doctor.main([])
    out = capsys.readouterr().out
    assert "What this machine offers" in out and "what it means" in out and "torch.compile" in out


def test_versions_are_those_installed() -> None:
    import torch

    assert finding("torch").version == torch.__version__
    assert finding("Python").version == ".".join(map(str, sys.version_info[:3]))
    ray = finding("Ray")
    assert re.fullmatch(r"\d+\.\d+\.\d+", ray.version) and "cluster of its own" in ray.meaning


def test_without_any_package_it_still_answers() -> None:
    """-S leaves out site-packages: no torch, no rich, no psutil, nothing."""
    run = subprocess.run(
        [sys.executable, "-S", "-m", "ddpm", "doctor", "--json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    told = {each["name"]: each for each in json.loads(run.stdout)}
    for name in ("torch", "Ray", "W&B", "webdataset", "rich", "NCCL", "torch.compile"):
        assert not told[name]["is_found"], name
    assert "make install" in told["torch"]["meaning"]
    assert told["Python"]["is_found"] and told["disk"]["is_found"]


def test_the_module_runs_as_a_command() -> None:
    run = subprocess.run(
        [sys.executable, "-S", "-m", "ddpm", "doctor"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and run.stdout.startswith("Python ")
    assert len(run.stdout.splitlines()) >= 20


@pytest.mark.parametrize("place", ["environment", "netrc", "new name", "own server"])
def test_the_key_is_seen_and_never_shown(
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "no key" in finding("W&B").meaning
    secret = "0123456789abcdef" * 2
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", secret)
    else:
        hosts = {"netrc": "api.wandb.ai", "new name": "api.forge.coreweave.com"}
        host = hosts.get(place, "wandb.example.org")
        if place == "own server":
            monkeypatch.setenv("WANDB_BASE_URL", f"https://{host}:8080")
        netrc = tmp_path / ".netrc"
        netrc.write_text(f"machine {host}\n  login user\n  password {secret}\n")
        netrc.chmod(0o600)
    assert "a key is there" in finding("W&B").meaning
    doctor.main([])
    doctor.main(["--json"])
    shown = capsys.readouterr()
    assert secret not in shown.out + shown.err


@pytest.mark.parametrize("text", ["", "machine other.org login a password b", "machine machine ("])
def test_a_netrc_without_the_host_is_no_key(text: str, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(text)
    assert "no key" in finding("W&B").meaning


def test_slurm_is_found_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not finding("sbatch").is_found and "no SLURM here" in finding("sbatch").meaning
    for command in ("sbatch", "srun"):
        put_command(tmp_path, command, "echo slurm 24.05.3")
    assert finding("sbatch").version == finding("srun").version == "24.05.3"
    assert "not inside" in finding("SLURM job").meaning
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    job = finding("SLURM job")
    assert job.is_found and job.version == "4711" and "3 node(s)" in job.meaning


@pytest.mark.parametrize("script", ["exit 1", "exec 9<&-; kill -9 $$"])
def test_a_broken_slurm_is_named(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    put_command(tmp_path, "sbatch", script)
    assert finding("sbatch").version == "does not answer"


def test_compile_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without = finding("torch.compile")
    assert not without.is_found and "a C++ compiler (g++)" in without.meaning
    put_command(tmp_path, "g++", "exit 0")
    assert finding("torch.compile").is_found and finding("torch.compile").version == "g++"


def test_a_running_cluster_is_announced_but_not_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere:10001")
    assert "joins that running cluster" in finding("Ray").meaning
    assert "somewhere" not in finding("Ray").meaning


def test_a_full_disk_is_no_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LEAST_DISK_GIB", 10**9)
    disk = finding("disk")
    assert not disk.is_found and "set OUTPUT_DIR elsewhere" in disk.meaning


def test_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the doctor used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert doctor.examine()


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    doctor.examine()
    assert list(tmp_path.iterdir()) == []
