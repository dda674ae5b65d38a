"""A training and a sweep before they start: everything that keeps them from it, at once."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import config as configuration
from ddpm.cli.main import launch
from ddpm.cluster import dry_run, run_sweep, run_training
from ddpm.cluster.workers import workers_for
from ddpm.config.schema import Config
from ddpm.errors import InputError, said_by_rank_0
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.loading import load_network
from ddpm.sampling.request import read_request
from ddpm.sweep.plan import Sweep, load_sweep
from tests.support.processes import exit_codes, forked, until, workers
from tests.support.shard_data import problems_of
from tests.support.tiny_training import DIGITS, overrides, tiny
from tests.support.tree import ROOT


def never() -> bool:
    return False


def small(out: Path, *overrides: str, wandb: str = "disabled") -> Config:
    """A training of a second, whose results go to `out`."""
    return tiny(f"TRAINING.OUTPUT_DIR={out}", f"WANDB.MODE={wandb}", *overrides)


def sweep_of(tmp_path: Path, grid: str, *overrides: str) -> Sweep:
    file = tmp_path / "one.yaml"
    file.write_text(f"BASE: {ROOT / 'configs' / 'digits.yaml'}\nGRID: {{{grid}}}\n")
    return load_sweep(file, [f"TRAINING.OUTPUT_DIR={tmp_path / 'out'}", *overrides])


def machine(monkeypatch: pytest.MonkeyPatch, *, gpus: int, cores: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))


def train_dry(config: Config) -> int:
    return dry_run.training(config, run_training.check(config), probe=False)


def sweep_dry(planned: Sweep) -> int:
    return dry_run.sweep(planned, None, probe=False)


def test_problems_of_data_machine_and_start_come_at_once_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=0, cores=2)
    config = small(
        tmp_path / "out",
        "DATASET.PATH=nowhere",
        "CLUSTER.GPUS_PER_WORKER=1",
        "TRAINING.IS_NEW_TRAIN=false",
        f"TRAINING.TRAINED_H5={tmp_path / 'gone'}",
    )
    run = problems_of(lambda: run_training.run(config, new=False, resume=None, should_stop=never))
    assert problems_of(lambda: train_dry(config)) == run
    words = ["nowhere does not exist", "TRAINED_H5", "GPUS_PER_WORKER is 1"]
    assert len(run) == 3
    assert all(word in line for word, line in zip(words, run, strict=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("TRAINING.INPUT_IMAGE_SIZE=16", "crops 16x16"),
        ("TRAINING.INPUT_IMAGE_CHANNEL=3", "INPUT_IMAGE_CHANNEL is 3"),
        ("TRAINING.NETWORK.NUM_CLASSES=3", "outside 0..2"),
    ],
)
def test_data_that_does_not_fit_is_not_packed(tmp_path: Path, override: str, words: str) -> None:
    config = small(tmp_path / "out", override)
    (line,) = problems_of(
        lambda: run_training.run(config, new=False, resume=None, should_stop=never)
    )
    assert words in line
    assert not list(tmp_path.iterdir())


def test_a_sweep_finds_the_cell_that_does_not_fit_the_data(tmp_path: Path) -> None:
    planned = sweep_of(tmp_path, "TRAINING.NETWORK.NUM_CLASSES: [10, 3]", "CLUSTER.NUM_WORKERS=1")
    for start in (
        lambda: sweep_dry(planned),
        lambda: run_sweep.run(planned, should_stop=never),
    ):
        (line,) = problems_of(start)
        assert "outside 0..2" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_dry_run_prints_the_configuration_and_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path / "out")
    checked = run_training.check(config)
    assert dry_run.training(config, checked, probe=False, verbose=True) == 0
    shown = capsys.readouterr().out
    assert "one image of 1x8x8" in shown and "PartCost" not in shown
    assert "nothing was written" in shown
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> tuple[Path, str]:
    """A folder with one run, which W&B was to mirror without a key; and what was printed."""
    folder, printed = tmp_path_factory.mktemp("trained"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("WANDB_MODE", "online")
        patch.setenv("NETRC", str(folder / "none"))
        config = small(folder / "out", f"DATASET.PATH={few_digits}", wandb="online")
        assert run_training.run(config, new=False, resume=None, should_stop=never) == 0
    return folder, printed.getvalue()


@pytest.mark.slow
def test_warnings_are_on_the_screen_as_in_the_log(trained: tuple[Path, str]) -> None:
    folder, printed = trained
    warned = "W&B: no API key"
    assert f"warning: {warned}" in printed
    (log,) = folder.glob("out/*/*/*/train.log")
    assert warned in log.read_text()


@pytest.mark.slow
def test_resume_takes_a_run_of_the_same_configuration_alone(
    trained: tuple[Path, str], few_digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data = trained[0], f"DATASET.PATH={few_digits}"
    config = small(folder / "out", data)
    (run,) = [path.parent for path in folder.glob("out/*/*/*/DONE.json")]
    again = small(folder / "out", data, "WANDB.PROJECT=other")
    assert run_training.run(again, new=False, resume=str(run), should_stop=never) == 0
    assert str(run) in capsys.readouterr().out.replace("\n", "")

    other = small(folder / "out", data, "TRAINING.SEED=7")
    lines = problems_of(
        lambda: run_training.run(other, new=False, resume=str(run), should_stop=never)
    )
    assert lines[1:] == ["TRAINING.SEED: 0 -> 7"]
    for place in (folder / "new", folder):
        with pytest.raises(InputError, match="run directory"):
            run_training.run(config, new=False, resume=str(place), should_stop=never)
    assert not (folder / "new").exists() and not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_without_validation_images_a_run_is_not_measured_and_a_sweep_refused(
    tmp_path: Path, few_digits: Path
) -> None:
    keys = (f"DATASET.PATH={few_digits}", "DATASET.VALIDATION_FRACTION=0", "EVALUATION.EVERY=1")
    config = small(tmp_path / "out", *keys)
    assert run_training.run(config, new=False, resume=None, should_stop=never) == 0
    assert not list(tmp_path.glob("out/*/*/*/evaluation.json"))
    grid = "TRAINING.PRED_TYPE: [noise, image]"
    planned = sweep_of(tmp_path, grid, "DATASET.VALIDATION_FRACTION=0")
    (line,) = problems_of(lambda: sweep_dry(planned))
    assert "VALIDATION_FRACTION is 0" in line


@pytest.mark.parametrize(
    ("gpus", "overrides", "expected"),
    [
        (0, [], (1, 16, 0.0)),
        (0, ["CLUSTER.NUM_WORKERS=32"], (32, 1, 0.0)),
        (4, [], (4, 4, 1.0)),
        (4, ["CLUSTER.GPUS_PER_WORKER=2"], (2, 8, 2.0)),
        (4, ["CLUSTER.GPUS_PER_WORKER=0"], (1, 16, 0.0)),
    ],
)
def test_workers_take_what_the_machine_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    overrides: list[str],
    expected: tuple[int, int, float],
) -> None:
    machine(monkeypatch, gpus=gpus, cores=16)
    config = small(tmp_path, "TRAINING.HYPER_PARAMETERS.BATCH_SIZE=128", *overrides)
    workers = workers_for(config)
    assert (workers.count, workers.cpus, workers.gpus) == expected


def test_more_gpus_than_there_are_would_be_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, gpus=1, cores=16)
    config = small(tmp_path, "CLUSTER.NUM_WORKERS=2")
    (line,) = problems_of(lambda: workers_for(config))
    assert "2 worker(s) of 1 GPU(s)" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "overrides", "side_by_side", "cores_each"),
    [
        (0, [], 16, 1),
        (0, ["CLUSTER.NUM_WORKERS=2"], 8, 1),
        (0, ["TUNE.MAX_CONCURRENT=3"], 3, 1),
        (1, ["CLUSTER.GPUS_PER_WORKER=0.25"], 4, 4),
        (4, [], 4, 4),
        (4, ["CLUSTER.NUM_WORKERS=4"], 1, 4),
    ],
)
def test_trials_are_packed_on_what_the_machine_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: int,
    overrides: list[str],
    side_by_side: int,
    cores_each: int,
) -> None:
    machine(monkeypatch, gpus=gpus, cores=16)
    sweep_dry(sweep_of(tmp_path, "TRAINING.PRED_TYPE: [noise, image]", *overrides))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{side_by_side} side by side" in shown
    assert f"of {cores_each} core(s)" in shown


def train_on_one_core(argv: list[str]) -> int:
    os.sched_getaffinity = lambda _: {0}  # type: ignore[assignment]
    return launch("train", argv)


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.long
def test_ctrl_c_saves_what_several_workers_train(tmp_path: Path, few_digits: Path) -> None:
    """More workers than there are cores, for which Ray would wait; its own handler would abort."""
    settings = overrides(
        f"TRAINING.OUTPUT_DIR={tmp_path}",
        f"DATASET.PATH={few_digits}",
        "TRAINING.HYPER_PARAMETERS.EPOCHS=100000",
        "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH=10",
        "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD=null",
        "CLUSTER.NUM_WORKERS=2",
    )
    said = tmp_path / "said"
    driver = forked(train_on_one_core, [str(DIGITS), *settings], said=said)
    until("it trains", lambda: list(tmp_path.glob("*/*/*/metrics.jsonl")))
    os.kill(driver.pid or 0, signal.SIGINT)
    assert exit_codes([driver], 90) == [75], said.read_text()
    assert "saving, then stopping" in said.read_text()
    assert "run the same command again" in said.read_text()
    assert list(tmp_path.glob("*/*/*/checkpoints/step-*"))


@pytest.mark.slow
def test_an_edm_run_keeps_its_sigma_data_and_draws_without_its_images(tmp_path: Path) -> None:
    config = small(tmp_path, "TRAINING.PRED_TYPE=edm")
    run_training.run(config, new=False, resume=None, should_stop=never)
    (run,) = (path.parent for path in tmp_path.rglob("DONE.json"))
    shutil.rmtree(tmp_path / "shards")
    model = load_network(run)
    assert model.schedule.sigma_data == pytest.approx(0.75, abs=0.01)  # of all values of digits
    assert model.schedule.time_input == "logsnr"
    assert ImageGenerator(read_request(run, ["IMAGE_GENERATION.NUM_STEPS=2"])).draw().any()


def test_edm_of_images_that_do_not_vary_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    grey = np.full((40, 8, 8, 1), 77, np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.arange(40) % 10)
    config = small(
        tmp_path / "out",
        "TRAINING.PRED_TYPE=edm",
        f"DATASET.PATH={tmp_path / 'grey.npz'}",
    )
    problems = problems_of(
        lambda: run_training.run(config, new=False, resume=None, should_stop=never)
    )
    assert problems == [
        "TRAINING.PRED_TYPE is edm but every value of every training image is the same, so that "
        "sigma_data, their standard deviation, is 0; give velocity, or images that vary"
    ]
    assert not list((tmp_path / "out").rglob("training_config.yaml"))


@pytest.mark.slow
def test_a_dry_run_refuses_a_window_that_no_cell_reaches(tmp_path: Path) -> None:
    shift = "TRAINING.NETWORK.LOGSNR_SHIFT: [-19, -18]"
    planned = sweep_of(tmp_path, shift, "TRAINING.NETWORK.TIMESTEPS=50", "CLUSTER.NUM_WORKERS=1")
    for start in (lambda: sweep_dry(planned), lambda: run_sweep.run(planned, should_stop=never)):
        (line,) = problems_of(start)
        assert line.startswith("no cell reaches a log SNR from ")


def torchruns(nodes: int, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """`torchrun launch/train.py ...` of two processes: on one node, or on two that meet here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={2 // nodes}"]
    command += [f"--nnodes={nodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]
    command += ["--local-addr=127.0.0.1", str(ROOT / "launch" / "train.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(nodes)]  # type: ignore[call-overload]
    return [
        subprocess.CompletedProcess(command, 0, *process.communicate(timeout=250))
        for process in started
    ]


def as_torchrun(argv: list[str], said: Path) -> tuple[list[int | None], str]:
    """Exit codes and words of two processes with the environment that torchrun gives its own."""
    files, started = [], []
    for env in workers(2):
        files.append(said.with_suffix("." + env["RANK"]))
        more = {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": env["RANK"]}
        started.append(forked(launch, "train", argv, env=env | more, said=files[-1]))
    return exit_codes(started, 250), "".join(file.read_text() for file in files)


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 2])
def test_torchrun_trains_the_same_weights(tmp_path: Path, few_digits: Path, nodes: int) -> None:
    """Two processes, to the bit what one trains in exact numerics; again: nothing is repeated."""
    exact = ("TRAINING.NUMERICS=exact", "TRAINING.MICRO_BATCH=4", "CLUSTER.CPUS_PER_WORKER=1")
    file, data = tmp_path / "small.yaml", f"DATASET.PATH={few_digits}"
    file.write_text(configuration.to_yaml(small(tmp_path / "one", data, *exact)))
    assert launch("train", [str(file)]) == 0
    argv = [str(file), f"TRAINING.OUTPUT_DIR={tmp_path / 'two'}"]
    done = torchruns(nodes, *argv)
    said = "".join(each.stdout for each in done)
    assert said.count("results: ") == 1, "".join(each.stderr for each in done)
    codes, said = as_torchrun(argv, tmp_path / "said")
    assert codes == [0, 0] and said.count("results: ") == 1
    (run,) = (tmp_path / "two").glob("*/*/*_????????")
    facts = RunDirectory(run).provenance
    assert facts["workers"] == 2 and len(facts["attempts"]) == 1
    one, two = (
        max(tmp_path.glob(f"{name}/*/*/*/checkpoints/*/model.safetensors")).read_bytes()
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("CLUSTER.NUM_WORKERS=3", "NUM_WORKERS is 3 but torchrun has started 2 process(es)"),
        ("TRAINING.SEDE=1", "TRAINING.SEDE"),
    ],
)
def test_rank_0_alone_says_what_is_wrong(tmp_path: Path, key: str, words: str) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(configuration.to_yaml(small(tmp_path / "out")))
    began = time.monotonic()
    (refused,) = torchruns(1, file, key)
    assert refused.stderr.count("error: ") == 1 and words in refused.stderr
    assert "exitcode" in refused.stderr and time.monotonic() - began < 25
    assert not (tmp_path / "out").exists()


def test_what_rank_0_does_not_see_another_says(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    before = signal.getsignal(signal.SIGTERM)
    for rank, local in (("0", "0"), ("1", "1"), ("2", "0")):
        place = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": local}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match="no GPU"), said_by_rank_0():
            raise InputError("no GPU")
    signal.signal(signal.SIGTERM, before)
    assert waits == [60, 30]
