"""A part of the reverse chain skipped: where it begins, in what, and what its command keeps."""

import json
from pathlib import Path

import pytest
import torch

from ddpm.errors import InputError, run_main
from experiments import skip_prefix
from experiments.skip_prefix import chart, noise_start, quality_of_run, skips
from tests.support.digits_runs import digits_run


def test_shares_are_even_and_whole_steps() -> None:
    assert skips(50, 0.6, 7) == [0, 5, 10, 15, 20, 25, 30]
    assert skips(4, 0.99, 3) == [0, 2, 3]  # one step is left at least
    with pytest.raises(InputError, match="--steps is 1.*\n.*--longest is 1.*\n.*--points is 1"):
        skips(1, 1.0, 1)


def test_a_skipped_walk_begins_in_unit_noise_of_its_own() -> None:
    ids = torch.arange(4000)
    start = noise_start(0.5, (1, 2, 2), 0, ids)
    assert start.time == 0.5 and start.x0 is not None
    x0 = start.x0
    assert float(x0.var()) == pytest.approx(1.0, abs=0.05)
    from ddpm.diffusion.philox import Stream, normal

    first = normal(0, Stream.X_T, ids, (1, 2, 2))  # what x0 is mixed with: alpha x0 + sigma first
    assert abs(float((x0 * first).mean())) < 0.03


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without labels: compared by pixels, which need no training."""
    data = {"NAME": "digits", "PATH": str(digits), "LABEL_KEY": None}
    return digits_run(digits, tmp_path_factory.mktemp("skip"), classes=None, DATASET=data)


@pytest.mark.slow
def test_nothing_skipped_is_the_whole_chain_and_all_but_one_step_is_not(run: Path) -> None:
    point = quality_of_run(run, 128)
    whole, most = point(4, 0), point(4, 3)
    assert most.share == 0.75
    assert most.fid.value != whole.fid.value
    assert most.fid.n == whole.fid.n == 128


@pytest.mark.slow
def test_the_command_prints_and_keeps_the_curve(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run), "--steps", "4", "--points", "3", "--num", "128"]
    assert skip_prefix.main([*words, "--dry-run"]) == 0
    assert "0%, 25%, 50% of 4 steps skipped" in capsys.readouterr().out
    assert not (run / "skip_prefix.json").exists()
    assert skip_prefix.main(words) == 0
    points = json.loads((run / "skip_prefix.json").read_text())["points"]
    assert [point["share"] for point in points] == [0.0, 0.25, 0.5]
    assert (run / "skip_prefix.png").read_bytes().startswith(b"\x89PNG")
    assert "1.00 x" in capsys.readouterr().out


@pytest.mark.slow
def test_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(lambda: skip_prefix.main([str(tmp_path / "none")])) == 2
    assert "is no folder" in capsys.readouterr().err
    assert chart({"empty": []}).startswith(b"\x89PNG")
