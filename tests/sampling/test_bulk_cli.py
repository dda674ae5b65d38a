"""The command line of images in bulk: what it says, its exit codes, and what it leaves alone."""

import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.cluster import submit
from ddpm.cluster.submit_images import ImageJobOptions, checked
from ddpm.errors import InputError
from ddpm.sampling.bulk import manifest_of, name_of
from tests.cluster.test_submitit_jobs import slurm
from tests.sampling.test_generate import make_run
from tests.support.bulk_data import Bulk, environment, files_of
from tests.support.tree import ROOT

__all__ = ["slurm"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def bulk(run: Path, tmp_path: Path) -> Bulk:
    return Bulk(run, tmp_path / "out")


def main(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "sample.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(None),
    )


@pytest.mark.slow
def test_from_a_dry_run_to_a_repaired_folder(bulk: Bulk) -> None:
    dry = bulk.command("--num", 20, "--unit", 8, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would draw 20 images (random_uncond, seed 0) of " in dry.stdout
    assert "in units of 8: 0 are there already, 20 to draw; nothing was written" in dry.stdout
    assert not bulk.out.exists()

    done = bulk.command("--num", 20, "--unit", 8, "--format", "npz")
    assert done.returncode == 0, done.stderr
    folder = bulk.series.folder
    last = done.stdout.splitlines()[-1]
    npz = "ddim_eta0.0_steps4_gen_20x8x8x3.npz"
    assert last == f"done: 20 images in {folder}: 3 shards in shards, grid.png, {npz}"
    assert (folder / npz).is_file() and (folder / "grid.png").is_file()

    shown = main(folder, "--status")
    assert shown.returncode == 0
    assert "20 of 20 images are there, in 3 units" in shown.stdout
    assert "no job waits or runs" in shown.stdout
    good = bulk.command("--verify")
    assert good.returncode == 0 and good.stdout.startswith("whole: 20 of 20 images in 3 units")

    before = files_of(bulk.series)
    manifest_of(bulk.series.shards, range(8, 16)).unlink()
    assert "missing: 8 images: 8-15" in main(folder, "--status").stdout
    bad = main(folder, "--verify")
    assert bad.returncode == 1 and "missing: 8 images: 8-15" in bad.stdout
    again = bad.stdout.splitlines()[-1].partition("again: ")[2]
    assert again == shlex.join(["python", "launch/sample.py", str(folder), "--num", "20"])
    repaired = main(*shlex.split(again)[2:])
    assert repaired.returncode == 0, repaired.stderr
    assert "12 are there, 8 to draw, 0 held by living jobs" in repaired.stdout
    assert files_of(bulk.series) == before
    assert main(folder, "--verify").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--num", 0), 2, "error: --num is 0; give at least 1"),
        (("--num", 9, "--cluster", "cloud"), 2, "invalid choice: 'cloud'"),
        (("--num", 9, "--unit", 7, "--batch-size", 2), 2, "--unit is 7, which is no multiple of"),
        (("--unit", 7), 2, "--unit is for images in bulk; give --num too"),
        (("--jobs", 7), 2, "--jobs is for images in bulk; give --cluster slurm too"),
        (("--num", 9, "--jobs", 7), 2, "--jobs says how to submit jobs; give --cluster slurm or"),
        (("--num", 9, "--cluster", "local", "--jobs", 0), 2, "--jobs is 0; give at least 1"),
        (("--num", 9, "IMAGE_GENERATION.DDIM_ETA=2"), 2, "DDIM_ETA"),
        (("--num", 9, "IMAGE_GENERATION.CLASS_LABEL=7"), 2, "CLASS_LABEL 7 is no class"),
        (("--status",), 2, "holds no images drawn in bulk"),
        (("--verify",), 2, "holds no images drawn in bulk"),
    ],
)
def test_bad_input_is_a_line_and_writes_nothing(
    bulk: Bulk, words: tuple[object, ...], code: int, message: str
) -> None:
    done = bulk.command(*words)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not bulk.out.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_a_matter_of_storage(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (path,) = run.glob("checkpoints/*/ema-0.9.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    bulk = Bulk(run, tmp_path / "out")
    done = bulk.command("--num", 9, "--cluster", "local")
    assert done.returncode == 5 and "none is intact" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert not bulk.out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "5"}, "--time 15 or more"),
        ({"time": "soon"}, "time limit 'soon'"),
        ({"sbatch": ["array=1-5"]}, "sets --array itself"),
        ({"sbatch": ["cpus-per-task=9"]}, "as many cores as the run was trained with"),
        ({"sbatch": ["job-name=x"]}, "jobs are called after the recipe"),
        ({"sbatch": ["comment=a\nb"]}, "a value is one line"),
    ],
)
def test_what_sbatch_cannot_be_given(bulk: Bulk, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked(bulk.request(9), ImageJobOptions(cluster="slurm", **options))  # type: ignore[arg-type]
    assert not bulk.out.exists()


def test_a_folder_that_slurm_would_read_as_a_pattern_is_refused(run: Path, tmp_path: Path) -> None:
    bulk = Bulk(run, tmp_path / "out%j")
    with pytest.raises(InputError, match=r"choose another IMAGE_GENERATION\.GEN_SAVE_DIR"):
        checked(bulk.request(9), ImageJobOptions(cluster="slurm"))


@pytest.mark.slow
def test_sbatch_gets_what_the_dry_run_has_shown(
    bulk: Bulk, slurm: dict[str, str], tmp_path: Path
) -> None:
    """The script, the arrays that the site allows, the folder that is its owner's alone. These jobs
    never run, so that all images are missing in the end.
    """
    options = ("--num", 64, "--unit", 8, "--cluster", "slurm", "--jobs", 4, "--sbatch", "mem=4G")
    shown = bulk.command(*options, "--dry-run", env=slurm)
    assert shown.returncode == 0, shown.stderr
    assert "by 4 task(s), 4 at a time, each with 1 core(s), 0 GPU and 60 minutes" in shown.stdout
    assert not bulk.out.exists()
    done = bulk.command(*options, env=slurm)
    assert done.returncode == 75, done.stdout + done.stderr
    assert "64 of 64 images are missing: 0-63; the same command draws them" in done.stderr
    first = (tmp_path / "tools" / "kept-0").read_text()
    assert first.rstrip() in shown.stdout
    for line in ("array=0-2%3", "mem=4G", "signal=USR2@120", "requeue", "cpus-per-task=1"):
        assert f"#SBATCH --{line}\n" in first
    folder = bulk.series.folder / "submitit"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.glob("*.pkl"):
        assert b"FileTask" in path.read_bytes() and path.stat().st_size < 1000
    jobs = submit.read_jobs(bulk.series.folder)
    assert [job.job for job in jobs] == ["70_0", "70_1", "70_2", "71"]
    assert [job.trials for job in jobs] == [
        tuple(name_of(range(a, a + 8)) for a in (16 * k, 16 * k + 8)) for k in range(4)
    ]
