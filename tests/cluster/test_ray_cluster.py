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
from tests.cluster.test_sweep_run import command
from tests.slurm.hosts import wait_until
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


@pytest.mark.ray
@pytest.mark.long
def test_a_second_cluster_of_a_process_starts_as_the_first() -> None:
    """And so does that of a process which inherits the environment."""
    for _ in range(2):
        with running_ray(1):
            import ray  # not before: it reads the environment once

            assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
    again = "import os, ddpm.cluster.ray_cluster as r\nwith r.running_ray(1): pass\n"
    subprocess.run([sys.executable, "-c", again], cwd=ROOT, check=True)


@pytest.mark.ray
@pytest.mark.long
def test_a_sweep_writes_no_credentials_and_its_session_goes_with_it(
    tmp_path: Path, temporary: Path
) -> None:
    """Neither another user nor root finds them while it runs; SIGTERM saves and ends it."""
    argv = command(tmp_path, "[linear]", **{"TRAINING.HYPER_PARAMETERS.EPOCHS": 5000})
    argv += ["GRID.TRAINING.PRED_TYPE=[image]", "--no-probe"]
    env = os.environ | dict.fromkeys(KEYS, CANARY) | {"TMPDIR": str(temporary)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as sweep:
        try:
            wait_until(
                "a trial trains", lambda: list(tmp_path.glob("out/*/*/*/metrics.jsonl")), 200
            )
            assert sweep.poll() is None
            if os.geteuid() == 0:
                assert found(temporary, "nobody") == ["open"]
            assert found(temporary) == ["open"]
            (session,) = sessions(temporary)
            assert (session / "logs" / "runtime_env_agent.log").exists()
            assert stat.S_IMODE(session.parents[1].stat().st_mode) == 0o700
        finally:
            sweep.terminate()
        assert sweep.wait(100) == 75
    assert list(tmp_path.glob("out/*/*/*/checkpoints/step-*"))
    assert not sessions(temporary) and not list(temporary.glob("ddpm-ray-*"))
    assert found(temporary) == ["open"]


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_inherits_the_credentials_that_it_is_not_sent() -> None:
    """From the Ray of our own, as a task with the kind of runtime_env that Tune gives shows."""
    script = (
        "import os, ddpm.cluster.ray_cluster as r\n"
        "with r.running_ray(1):\n"
        "  import ray\n"
        "  own = ray.remote(runtime_env={'env_vars': {'PL_DISABLE_FORK': '1'}})\n"
        f"  print(ray.get(own(lambda: [os.environ[key] for key in {KEYS}]).remote()))\n"
    )
    env = os.environ | {key: f"{CANARY}-{key}" for key in KEYS}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout == f"{[f'{CANARY}-{key}' for key in KEYS]}\n"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
@pytest.mark.long
def test_a_session_goes_however_its_process_ends(temporary: Path, last: str, code: int) -> None:
    """At once where it can say so, else when all that it had started is dead. Of one that ends
    well: the test of a sweep's credentials.
    """
    script = "import os, ddpm.cluster.ray_cluster as r\n"
    script += f"with r.running_ray(1):\n  print(os.listdir({str(temporary)!r}))\n  {last}\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert done.returncode == code and "ddpm-ray-" in done.stdout
    is_killed = "os." in last
    wait_until("the folder goes", lambda: not sessions(temporary), 30 if is_killed else 0.5)


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
