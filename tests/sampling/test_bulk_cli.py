"""The command line of images in bulk: what it says, its exit codes, and what it leaves alone."""

import shlex
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.cli.main import launch
from ddpm.cluster import submit
from ddpm.cluster.submit import JobOptions
from ddpm.cluster.submit_images import check
from ddpm.errors import InputError
from ddpm.sampling.bulk import manifest_of, name_of
from tests.cluster.test_submitit_jobs import slurm
from tests.support.bulk_data import Bulk, files_of
from tests.support.small_run import make_run

__all__ = ["slurm"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bulk(run: Path, tmp_path: Path) -> Bulk:
    return Bulk(run, tmp_path / "out")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`ddpm sample WORDS` in this process: exit code, stdout, stderr."""

    def called(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = launch("sample", [str(word) for word in words])
        except SystemExit as done:  # argparse
            code = int(str(done.code))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return called


@pytest.mark.slow
def test_from_a_dry_run_to_a_repaired_folder(bulk: Bulk, command: Command) -> None:
    source = (bulk.run, *bulk.overrides)
    code, shown, _ = command(*source, "--num", 20, "--unit", 8, "--dry-run")
    assert code == 0 and "would draw 20 images (random_uncond, seed 0) of " in shown
    assert "in units of 8: 0 are there already, 20 to draw; nothing was written" in shown
    assert not bulk.out.exists()

    code, shown, _ = command(*source, "--num", 20, "--unit", 8, "--format", "npz")
    folder, npz = bulk.series.folder, "ddim_eta0.0_steps4_gen_20x8x8x3.npz"
    last = f"done: 20 images in {folder}: 3 shards in shards, grid.png, {npz}"
    assert code == 0 and shown.splitlines()[-1] == last
    assert (folder / npz).is_file() and (folder / "grid.png").is_file()

    code, shown, _ = command(folder, "--status")
    assert code == 0 and "20 of 20 images are there, in 3 units" in shown
    assert "no job waits or runs" in shown
    code, shown, _ = command(*source, "--verify")
    assert code == 0 and shown.startswith("whole: 20 of 20 images in 3 units")

    before = files_of(bulk.series)
    manifest_of(bulk.series.shards, range(8, 16)).unlink()
    assert "missing: 8 images: 8-15" in command(folder, "--status")[1]
    code, shown, _ = command(folder, "--verify")
    assert code == 1 and "missing: 8 images: 8-15" in shown
    again = shlex.split(shown.splitlines()[-1].partition("again: ")[2])
    assert again[-3:] == [str(folder), "--num", "20"]
    code, shown, _ = command(*again[-3:])
    assert code == 0 and "12 are there, 8 to draw, 0 held by living jobs" in shown
    assert files_of(bulk.series) == before and command(folder, "--verify")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num", 0), "error: --num is 0; give at least 1"),
        (("--num", 9, "--cluster", "cloud"), "invalid choice: 'cloud'"),
        (("--num", 9, "--unit", 7, "--batch-size", 2), "of --batch-size 2; give --unit 8"),
        (("--num", 9, "--unit", 0), "error: --unit is 0; give at least 1"),
        (("--unit", 7), "--unit is for images in bulk; give --num too"),
        (("--jobs", 7), "--jobs is for images in bulk; give --cluster slurm too"),
        (("--num", 9, "--jobs", 7), "--jobs says how to submit jobs; give --cluster slurm or"),
        (("--num", 9, "--cluster", "local", "--jobs", 0), "--jobs is 0; give at least 1"),
        (("--num", 9, "IMAGE_GENERATION.DDIM_ETA=2"), "DDIM_ETA"),
        (("--num", 9, "IMAGE_GENERATION.CLASS_LABEL=7"), "CLASS_LABEL 7 is no class"),
        (("--status",), "holds no images drawn in bulk"),
        (("--verify",), "holds no images drawn in bulk"),
    ],
)
def test_bad_input_is_a_line_and_writes_nothing(
    bulk: Bulk, command: Command, words: tuple[object, ...], message: str
) -> None:
    code, _, error = command(bulk.run, *bulk.overrides, *words)
    assert code == 2 and message in error and not bulk.out.exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_a_matter_of_storage(tmp_path: Path, command: Command) -> None:
    run = make_run(tmp_path)
    (path,) = run.glob("checkpoints/*/ema-0.9.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    bulk = Bulk(run, tmp_path / "out")
    code, _, error = command(run, *bulk.overrides, "--num", 9, "--cluster", "local")
    assert code == 5 and "none is intact" in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
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
        check(bulk.request(9), JobOptions(cluster="slurm", **options))  # type: ignore[arg-type]
    assert not bulk.out.exists()


def test_a_folder_that_slurm_would_read_as_a_pattern_is_refused(run: Path, tmp_path: Path) -> None:
    bulk = Bulk(run, tmp_path / "out%j")
    with pytest.raises(InputError, match=r"choose another IMAGE_GENERATION\.GEN_SAVE_DIR"):
        check(bulk.request(9), JobOptions(cluster="slurm"))


@pytest.mark.slow
def test_sbatch_gets_what_the_dry_run_has_shown(
    bulk: Bulk,
    command: Command,
    slurm: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script, the arrays that the site allows, the folder that is its owner's alone. These jobs
    never run, so that all images are missing in the end.
    """
    monkeypatch.setenv("PATH", slurm["PATH"])
    words = (bulk.run, *bulk.overrides, "--num", 64, "--unit", 8)
    options = (*words, "--cluster", "slurm", "--jobs", 4, "--sbatch", "mem=4G")
    code, shown, errors = command(*options, "--dry-run", "-v")
    assert code == 0, errors
    assert "by 4 task(s), 4 at a time, each with 1 core(s), 0 GPU and 60 minutes" in shown
    assert not bulk.out.exists()
    code, _, errors = command(*options)
    assert code == 75, errors
    assert "64 of 64 images are missing: 0-63; the same command draws them" in errors
    first = (tmp_path / "tools" / "kept-0").read_text()
    assert first.rstrip() in shown
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
