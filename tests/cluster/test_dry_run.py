"""--dry-run: the script that sbatch would get, the predicted time, and nothing written."""

import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm import config
from ddpm.cli.main import launch
from ddpm.cluster import cost
from ddpm.cluster.cost import Speed
from ddpm.cluster.slurm import as_submitted, from_environment, minutes, options_in
from ddpm.cluster.workers import Workers
from ddpm.errors import InputError
from ddpm.runs.progress import duration
from tests.cluster.test_submitit_jobs import SMALL, Small
from tests.support.tree import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"
SIZE, WORKERS = "TRAINING.INPUT_IMAGE_SIZE", Workers(count=1, cpus=1, gpus=0.0)
SCRIPT = """#!/bin/bash
# two nodes unless told otherwise
#SBATCH --job-name=ddpm-train
#SBATCH -t 04:00:00   # long enough
#SBATCH --signal=B:USR2@120
##SBATCH --qos=never

echo hello
#SBATCH --partition=late
"""


def test_environment_outranks_the_lines_of_a_script() -> None:
    env = {"SBATCH_TIMELIMIT": "1:00", "SBATCH_ACCOUNT": "it's mine", "SBATCH_NEWS": "no"}
    assert from_environment(env) == {"time": "1:00", "account": "it's mine"}
    lines = as_submitted(SCRIPT, env).splitlines()
    assert lines[3] == "#SBATCH --time=1:00    # SBATCH_TIMELIMIT"
    assert lines[5] == "#SBATCH --account='it'\"'\"'s mine'    # SBATCH_ACCOUNT"
    assert lines[:3] + lines[6:] == SCRIPT.splitlines()[:3] + SCRIPT.splitlines()[5:]
    assert as_submitted(SCRIPT, {}) == SCRIPT.rstrip("\n")
    assert options_in(SCRIPT) == {"job-name", "time", "signal"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("30:00", 30), ("0:30", 1), ("1:30:00", 90), ("2-12", 3600), ("1-0:30:01", 1471)],
)
def test_time_limits_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected
    for wrong in ("", "soon", "1:2:3:4", "-5", "1.5"):
        with pytest.raises(InputError, match="time limit"):
            minutes(wrong)


@pytest.mark.slow
def test_a_training_shows_its_script_and_command_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"SBATCH_PARTITION": "gpu", "SBATCH_TIMELIMIT": "7:00:00"}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    words = [str(DIGITS), "TRAINING.SEED=7", f"TRAINING.OUTPUT_DIR={tmp_path}/it's $(here)"]
    monkeypatch.setattr(sys, "argv", ["launch/train.py", *words, "--dry-run", "--no-probe"])
    assert launch("train") == 0
    short = capsys.readouterr().out
    assert f"  sbatch slurm/train.sh {shlex.join(words)}\n" in short
    assert len(short.splitlines()) <= 10 and "#SBATCH" not in short and "SCHEDULER:" not in short
    sys.argv.append("-v")
    assert launch("train") == 0
    shown = capsys.readouterr().out
    assert "  SCHEDULER: " in shown and "one image of 1x8x8" in shown
    assert f"  sbatch slurm/train.sh {shlex.join(words)}\n" in shown
    assert "#SBATCH --partition=gpu    # SBATCH_PARTITION" in shown
    assert "#SBATCH --time=7:00:00    # SBATCH_TIMELIMIT" in shown
    script = as_submitted((ROOT / "slurm" / "train.sh").read_text(), env)
    assert script.rstrip() in shown
    assert "predicted" not in shown and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_shows_cells_time_and_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "BUDGET_S", 0.3)
    small = Small(tmp_path)
    monkeypatch.setattr(sys, "argv", [*small.argv("--dry-run")[1:]])
    assert launch("sweep") == 0
    shown = capsys.readouterr().out
    assert shown.count("· seed 0") == 4
    assert "predicted: 4 trainings" in shown and "core-hours" in shown
    assert "measured just now on" in shown and "1 thread(s)" in shown
    assert f"sbatch slurm/sweep.sh {small.file}" in shown
    assert small.main("--dry-run", "--cluster", "local", "--jobs", "2", "--no-probe") == 0
    assert "4 trials in 2 task(s) of up to 2, 2 at a time" in capsys.readouterr().out
    assert not small.out.exists()


def test_every_grid_point_is_checked(tmp_path: Path) -> None:
    small = Small(tmp_path)
    small.file.write_text(small.file.read_text().replace("cosine]", "cosines]"))
    small.refused("cosines", "--dry-run", "--no-probe")


def small_config(**changed: object) -> config.Config:
    return config.load(DIGITS, [f"{key}={value}" for key, value in (SMALL | changed).items()])


@pytest.mark.slow
def test_passes_are_those_that_the_run_makes(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, in a real run, by the network itself."""
    from ddpm.diffusion.unet import UNet
    from ddpm.distributed import Group
    from ddpm.training import worker

    cell = small_config(
        **{
            "TRAINING.OUTPUT_DIR": tmp_path,
            **{"TRAINING.INLINE_GEN.ENABLE": True, "TRAINING.INLINE_GEN.PERIOD": 4},
            **{
                "EVALUATION.NUM": 16,
                "EVALUATION.EVERY": 3,
                "EVALUATION.FEATURES": "pixels",
                "EVALUATION.SAMPLES": 65,
            },
            "TRAINING.NETWORK.TIMESTEPS": 20,
            "TRAINING.INLINE_GEN.REVERSE_STRIDE": 10,
        }
    )
    images, forward = [], UNet.forward

    def counted(self: UNet, x: torch.Tensor, *rest: object, **more: object) -> torch.Tensor:
        if not torch.is_grad_enabled():
            images.append(len(x))
        return forward(self, x, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(UNet, "forward", counted)
    job = worker.TrainingJob(
        config=config.to_dict(cell),
        run_dir=str(tmp_path / "run"),
        data_dir=str(digits),
        threads=1,
        command=(),
    )
    worker.work(job, Group())
    speed = Speed(step_s=0.5, call_s=0.25, device="a clock")
    predicted = cost.predict(cell, speed)
    assert predicted.steps == 24 and predicted.passes == sum(images)
    assert predicted.seconds == 12.0 + sum(images) / 4


@pytest.mark.slow
def test_a_probe_sees_the_batch() -> None:
    cell = small_config(**{"TRAINING.NETWORK.FIRST_CHANNEL": 16})
    speed = cost.measure(cell, threads=1, uses_gpu=False)
    assert not speed.on_gpu and "1 thread(s)" in speed.device
    # a machine too busy for whole steps says so
    assert speed.note == "" or " images is taken from steps of up to " in speed.note
    longer = replace_batch(cell, 512)
    ratio = cost.measure(longer, threads=1, uses_gpu=False).step_s / speed.step_s
    assert 1.0 < ratio < 16.0, "four times the images, on a machine that does other things too"


@pytest.mark.slow
@pytest.mark.parametrize("key", ["PRED_TYPE", "LOSS_SPACE"])
def test_a_probe_needs_no_data_for_edm(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BUDGET_S", 0.3)
    cell = small_config(**{f"TRAINING.{key}": "edm"})
    assert cost.measure(cell, threads=1, uses_gpu=False).step_s > 0


def replace_batch(cell: config.Config, size: int) -> config.Config:
    hyper = replace(cell.TRAINING.HYPER_PARAMETERS, BATCH_SIZE=size)
    return replace(cell, TRAINING=replace(cell.TRAINING, HYPER_PARAMETERS=hyper))


def test_networks_that_cost_the_same_are_measured_once() -> None:
    cells = [small_config(**{"TRAINING.SEED": n}) for n in range(3)]
    cells.append(small_config(**{"TRAINING.PRED_TYPE": "image"}))
    cells.append(small_config(**{"TRAINING.NETWORK.FIRST_CHANNEL": 16}))
    assert [cost.same_cost(cell) == cost.same_cost(cells[0]) for cell in cells] == [
        *(True, True, True, True, False)
    ]
    averaged = small_config(**{"TRAINING.EMA_POWER": "[0.05,0.1]"})
    assert cost.same_cost(averaged) != cost.same_cost(cells[0])


@pytest.mark.slow
def test_a_network_that_does_not_fit_is_told() -> None:
    cell = small_config(**{"TRAINING.NETWORK.FIRST_CHANNEL": 32_768})
    with pytest.raises(InputError, match="the network does not fit: .* GiB free"):
        cost.measure(cell, threads=1, uses_gpu=False)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BUDGET_S", 0.3)
    large = small_config(**{"TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 1_000_000})
    speed = cost.measure(large, threads=1, uses_gpu=False)
    assert "TRAINING.MICRO_BATCH cuts a batch" in speed.note
    assert "a step of 1000000 images is taken from steps of up to" in speed.note
    assert speed.step_s > 60


def test_several_workers_share_a_batch() -> None:
    cell, speed = small_config(), Speed(step_s=0.5, call_s=0.25, device="a clock")
    assert cost.predict(cell, speed, 4).steps == cost.predict(cell, speed).steps
    whole = cell.TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    shared = cost.part_of_worker(cell, 4).TRAINING.HYPER_PARAMETERS.BATCH_SIZE
    assert shared == -(-whole // 4)
    assert cost.same_cost(cost.part_of_worker(cell, 1)) != cost.same_cost(
        cost.part_of_worker(cell, 4)
    )


def test_durations() -> None:
    seconds = (0.5, 4, 50, 119, 130, 7000, 3600 * 3.4, 200_000)
    shown = [duration(s) for s in seconds]
    assert shown == ["0.5 s", "4.0 s", "50 s", "119 s", "2.2 min", "117 min", "3.4 h", "2.3 days"]


@pytest.mark.slow
def test_a_network_whose_steps_take_minutes_is_estimated_in_seconds() -> None:
    """v3's network at 256 pixels on a CPU: 5 TFLOPs an image and step."""
    wide = {
        "TRAINING.INPUT_IMAGE_SIZE": 256,
        "TRAINING.NETWORK.FIRST_CHANNEL": 128,
        "TRAINING.NETWORK.CHANNEL_MULTIPLIER": "[1, 2, 4, 8]",
        "TRAINING.NETWORK.HAS_ATTENTION": "[false, false, true, true]",
        "TRAINING.NETWORK.NUM_RES_BLOCKS": 2,
        "TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 8,
    }
    cell = small_config(**wide)
    started = time.process_time()
    one, two = cost.predict_all([cell, small_config(**wide | {SIZE: 128})], WORKERS, cost.LIMIT_S)
    assert time.process_time() - started < 60, "seconds, where a step takes minutes"
    assert one.speed.is_estimated and "FLOPs a step at the" in one.speed.note
    assert 0.2 < 4 * two.speed.step_s / one.speed.step_s < 5
    lines = cost.notes([one, two], WORKERS)
    assert not any("measured just now" in line for line in lines)


@pytest.mark.slow
def test_networks_beyond_the_limit_are_estimated_by_their_flops() -> None:
    cells = [small_config(**{"TRAINING.NETWORK.FIRST_CHANNEL": width}) for width in (8, 16, 32)]
    first, *others = cost.predict_all(cells, WORKERS, 1.0)
    assert not first.speed.is_estimated
    for one, cell in zip(others, cells[1:], strict=True):
        ratio = cost.network_summary(cell).flops_per_image
        ratio /= cost.network_summary(cells[0]).flops_per_image
        assert one.speed.call_s == pytest.approx(first.speed.call_s * ratio)
        assert one.speed.is_estimated and "by their FLOPs" in one.speed.note
