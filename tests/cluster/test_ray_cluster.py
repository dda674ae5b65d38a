"""Clusters of one process, one after the other, and what they leave to be read by others."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddpm.cluster.ray_cluster import LONGEST, running_ray, short_base
from ddpm.errors import InputError
from tests.cluster.test_sweep_run import arguments
from tests.support.processes import exit_codes, forked, until
from tests.support.tree import ROOT

CANARY = "canary-8a61f0c2"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN")


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for temporary files that everyone may enter, with one file to be found."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "open").write_text(CANARY)
        yield Path(folder)


def found(folder: Path, user: str | None = None) -> list[str]:
    """The files below a folder in which this user (None: who runs the tests) reads the canary."""
    argv = ["grep", "-rls", "-D", "skip", CANARY, str(folder)]
    groups: tuple[int, ...] | None = () if user else None
    done = subprocess.run(
        argv,
        stdout=subprocess.PIPE,
        text=True,
        user=user,
        group=user and 65534,
        extra_groups=groups,
    )
    return [str(Path(line).relative_to(folder)) for line in done.stdout.splitlines()]


def sessions(folder: Path) -> list[Path]:
    """Ray's session folders below this one; session_latest is a link to one of them."""
    return [path for path in folder.glob("*/*/session_*") if not path.is_symlink()]


def inherited(path: Path) -> int:
    """Writes the credentials of a task with the kind of runtime_env that Tune gives."""
    with running_ray(1):
        import ray

        own = ray.remote(runtime_env={"env_vars": {"PL_DISABLE_FORK": "1"}})
        found = ray.get(own(lambda: [os.environ[key] for key in KEYS]).remote())
    path.write_text("\n".join(found))
    return 0


@pytest.mark.ray
@pytest.mark.long
def test_a_second_cluster_of_a_process_starts_as_the_first(tmp_path: Path) -> None:
    """And so does that of a process which inherits the environment; a trial in it inherits the
    credentials, which it is not sent.
    """
    for _ in range(2):
        with running_ray(1):
            import ray  # not before: it reads the environment once

            assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
    env = os.environ | {key: f"{CANARY}-{key}" for key in KEYS}
    assert exit_codes([forked(inherited, tmp_path / "found", env=env)]) == [0]
    assert (tmp_path / "found").read_text().split() == [f"{CANARY}-{key}" for key in KEYS]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_sigterm_saves_trials_of_several_workers_and_asks_to_run_again(
    tmp_path: Path, temporary: Path, few_digits: Path
) -> None:
    """Neither another user nor root finds its credentials while it runs; its session goes too."""
    longer = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 5000, "CLUSTER.NUM_WORKERS": 2}
    argv = [*arguments(tmp_path, few_digits, **longer), "--no-probe"]
    env = os.environ | dict.fromkeys(KEYS, CANARY) | {"TMPDIR": str(temporary)}
    said = tmp_path / "said"
    command = [sys.executable, ROOT / "launch" / "sweep.py", *argv]  # a fork ends without atexit
    with said.open("wb") as file:
        driver = subprocess.Popen(command, env=env, stdout=file, stderr=file)
    try:
        until("a trial trains", lambda: list(tmp_path.glob("out/*/*/*/metrics.jsonl")))
        assert driver.poll() is None
        if os.geteuid() == 0:
            assert found(temporary, "nobody") == ["open"]
        assert found(temporary) == ["open"]
        (session,) = sessions(temporary)
        assert (session / "logs" / "runtime_env_agent.log").exists()
        assert stat.S_IMODE(session.parents[1].stat().st_mode) == 0o700
    finally:
        driver.terminate()
    assert driver.wait(100) == 75, said.read_text()
    assert "run the same command again" in said.read_text()
    started = list(tmp_path.glob("out/*/*/*/metrics.jsonl"))
    assert started and all(list(p.parent.glob("checkpoints/step-*")) for p in started)
    assert not sessions(temporary) and not list(temporary.glob("ddpm-ray-*"))
    assert found(temporary) == ["open"]


def end_with_ray(temporary: Path, is_killed: bool) -> int:
    """Never returns."""
    with running_ray(1):
        assert sessions(temporary)
        if is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt


@pytest.mark.ray
@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.long
def test_a_session_goes_however_its_process_ends(temporary: Path, is_killed: bool) -> None:
    """At once where it can say so, else when all that it had started is dead. Of one that ends
    well: the test of a sweep's credentials.
    """
    env = os.environ | {"TMPDIR": str(temporary)}
    process = forked(end_with_ray, temporary, is_killed, env=env)
    assert exit_codes([process]) == [-signal.SIGKILL if is_killed else 1]
    until("the folder goes", lambda: not sessions(temporary), 30 if is_killed else 0.5)


def test_a_path_too_long_for_sockets_is_passed_over(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * LONGEST)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setenv("DDPM_SCRATCH", str(temporary))
    assert short_base("name", "DDPM_SCRATCH") == temporary
    monkeypatch.setenv("DDPM_SCRATCH", str(long))
    assert short_base("name", "DDPM_SCRATCH") == Path("/tmp")
    with pytest.raises(InputError, match="set DDPM_SCRATCH to one, or TMPDIR"):
        short_base("x" * LONGEST, "DDPM_SCRATCH")
