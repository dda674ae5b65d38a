"""Averages kept by a real training, and what is made of them, whatever happened between."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm import config as configuration
from ddpm.cli import evaluate as command
from ddpm.cli import sample
from ddpm.cluster import run_training
from ddpm.config.schema import Config
from ddpm.data import open_data
from ddpm.distributed import ALONE
from ddpm.errors import InputError, Interrupted, StorageError
from ddpm.metrics.network_samples import BATCH, measure_samples, sampler_of, sampling_walks
from ddpm.metrics.quality import read_pictures
from ddpm.metrics.validation import evaluate_run
from ddpm.metrics.window import data_window
from ddpm.runs import averages, checkpoint
from ddpm.runs.directory import RunDirectory
from ddpm.sampling.batches import draw_batch
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.loading import load_network
from ddpm.sampling.request import PowerEma, ema_of, parse_ema, read_request, weights_name
from tests.cluster.test_run_training import never, small
from tests.support.small_run import make_run

EPOCHS, STEPS = 10, 3


pytestmark = pytest.mark.slow  # a training each module


def power(out: Path, data: Path) -> Config:
    """Of 30 steps, ten times saved."""
    return small(
        out,
        f"DATASET.PATH={data}",
        "TRAINING.EMA_POWER=[0.05,0.2]",
        f"TRAINING.HYPER_PARAMETERS.EPOCHS={EPOCHS}",
        f"TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH={STEPS}",
        "TRAINING.HYPER_PARAMETERS.SAVE_PERIOD=1",
        "CLUSTER.CPUS_PER_WORKER=1",
    )


def train(config: Config, stop_after: int | None = None) -> Path:
    """The run directory, of a finished training or of one stopped after so many steps."""
    asked = iter(range(1, 10**6))
    should_stop = never if stop_after is None else lambda: next(asked) >= stop_after
    try:
        run_training.run(config, new=False, resume=None, should_stop=should_stop)
    except Interrupted:
        assert stop_after is not None
    (path,) = Path(config.TRAINING.OUTPUT_DIR).glob("*/*/*_*_*")
    return path


def kept(run: Path) -> dict[str, str]:
    """SHA-256 of every average kept."""
    files = sorted((run / averages.FOLDER).glob("*/power-*"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, few_digits: Path) -> Path:
    return train(power(tmp_path_factory.mktemp("power"), few_digits))


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / run.name))


def test_one_is_kept_every_save_period_whatever_becomes_of_checkpoints(run: Path) -> None:
    steps = list(range(STEPS, EPOCHS * STEPS + 1, STEPS))
    assert checkpoint.steps(run / averages.FOLDER) == steps
    assert checkpoint.steps(run / "checkpoints") == steps[-3:]
    for step in steps:
        found = checkpoint.load(checkpoint.folder_of(run / averages.FOLDER, step))
        assert set(found.tensors) == {"power-0.05", "power-0.2"}
        assert all(t.dtype == torch.float32 for t in found.tensors["power-0.05"].values())
    last = checkpoint.load(checkpoint.folder_of(run / "checkpoints", steps[-1]))
    for part in found.tensors:
        for name, tensor in found.tensors[part].items():
            assert torch.equal(tensor, last.tensors[part][name])


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [STEPS * 4, STEPS * 4 + 1])
def test_an_interrupted_training_keeps_the_same_to_the_bit(
    run: Path, tmp_path: Path, few_digits: Path, stop_after: int
) -> None:
    half = train(power(tmp_path, few_digits), stop_after)
    # what was saved because of the stop is no snapshot
    assert all(s % STEPS == 0 for s in checkpoint.steps(half / averages.FOLDER))
    assert not RunDirectory(half).is_finished
    assert kept(train(power(tmp_path, few_digits))) == kept(run)


def test_snapshots_after_the_checkpoint_continued_from_are_dropped(copy: Path) -> None:
    left = copy / averages.FOLDER / ".step-00000003.0123abcd.tmp"
    left.mkdir()
    averages.forget_after(copy, STEPS * 4)
    assert checkpoint.steps(copy / averages.FOLDER) == [STEPS * k for k in range(1, 5)]
    assert not left.exists()


def test_a_tracked_length_is_made_as_it_was_tracked(run: Path) -> None:
    for step in checkpoint.steps(run / "checkpoints"):
        folder = checkpoint.folder_of(run / "checkpoints", step)
        own = checkpoint.load(folder)
        for length in (0.05, 0.2):
            model = load_network(folder, PowerEma(length))
            assert (model.step, model.name) == (step, f"power-{length:g}")
            for name, tensor in model.network.named_parameters():
                expected = own.tensors[model.name][name]
                torch.testing.assert_close(tensor.cpu(), expected, rtol=1e-5, atol=1e-6)


def test_a_length_between_is_made_and_told_apart_from_others(run: Path) -> None:
    models = [load_network(run, PowerEma(length)) for length in (0.05, 0.1, 0.2)]
    weights = [model.network.state_dict()["head.weight"] for model in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert (weights[1] - weights[0]).norm() < (weights[2] - weights[0]).norm()
    assert len({model.sha256 for model in models}) == 3
    again = load_network(run, PowerEma(0.1))
    assert again.sha256 == models[1].sha256
    assert torch.equal(again.network.state_dict()["head.weight"], weights[1])


def test_a_length_the_snapshots_cannot_make_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="0.002 cannot be made from the 20 snapshots") as error:
        load_network(run, PowerEma(0.002))
    assert "nearer those tracked (0.05, 0.2), or train with a shorter SAVE_PERIOD" in str(error)


def test_a_damaged_snapshot_is_never_averaged(copy: Path) -> None:
    path = copy / averages.FOLDER / "step-00000012" / "power-0.05.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="power-0.05.safetensors does not match"):
        load_network(copy, PowerEma(0.1))
    assert load_network(copy).name == "ema-0.99"


def test_without_the_key_a_run_is_what_it_was(tmp_path: Path) -> None:
    plain, same = small(tmp_path), small(tmp_path, "TRAINING.EMA_POWER=[]")
    assert configuration.identifying(plain) == configuration.identifying(same)
    assert not any("EMA_POWER" in key for key in configuration.identifying(plain))
    other = make_run(tmp_path)
    assert not (other / averages.FOLDER).exists()
    with pytest.raises(InputError, match="without TRAINING.EMA_POWER"):
        load_network(other, PowerEma(0.1))
    with pytest.raises(InputError, match=r"--ema power:0.1: .* without TRAINING.EMA_POWER"):
        read_request(other, ema=PowerEma(0.1))
    with pytest.raises(InputError, match=r"EMA_POWER=\[0.05,0.1\]"):
        command.main([str(other), "--ema-curve"])


@pytest.mark.parametrize("value", ["[0.3]", "[0]", "[-0.1]", "[0.05,0.05]", "[short]"])
def test_impossible_lengths_are_refused_before_training(tmp_path: Path, value: str) -> None:
    with pytest.raises(InputError, match="TRAINING.EMA_POWER"):
        small(tmp_path, f"TRAINING.EMA_POWER={value}")


def test_weights_are_named_on_the_command_line() -> None:
    assert parse_ema("0.99") == 0.99 and parse_ema("0") == 0.0
    assert parse_ema("power:0.07") == parse_ema("POWER:0.070") == PowerEma(0.07)
    config = small(Path("out"))
    for ema in (0.0, 0.99, PowerEma(0.07), PowerEma(0.0712345)):
        assert ema_of(weights_name(config, ema)) == ema
    for text in ("power", "power:", "power:x", "power:0", "power:0.3", "fast"):
        with pytest.raises(InputError, match="power:0.07"):
            parse_ema(text)


def test_images_are_drawn_with_a_length_and_guided_by_another(run: Path, tmp_path: Path) -> None:
    keys = ("NUM_GEN_IMAGES=2", "NUM_STEPS=2", "GUIDANCE=2", "GUIDE=power:0.2")
    overrides = [f"IMAGE_GENERATION.{key}" for key in (*keys, f"GEN_SAVE_DIR={tmp_path}")]
    assert sample.main([str(run), "--ema", "power:0.1", "--batch-size", "2", *overrides]) == 0
    (recipe,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert recipe["weights"] == "power-0.1"
    assert recipe["sampler"]["guide_sha256"] == load_network(run, PowerEma(0.2)).sha256
    request = read_request(run, overrides, ema=PowerEma(0.1), batch_size=2)
    assert ImageGenerator(request).run().was_there
    with pytest.raises(InputError, match="the weights drawn from themselves"):
        read_request(run, overrides, ema=PowerEma(0.2))


@pytest.mark.long
def test_the_curve_measures_each_length_as_evaluation_would(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = capsys.readouterr()
    assert command.main([str(copy), "--ema-curve", "--num", "4"]) == 0
    said = capsys.readouterr().out
    found = json.loads((copy / "ema_curve.json").read_text())
    by_name = {point["weights"]: point for point in found["points"]}
    assert before.out == "" and set(by_name) <= set(said.replace("*", " ").split())
    assert {"power-0.05", "power-0.2", "ema-0.99", "model"} < set(by_name)
    assert found["left_out"] == [0.01, 0.0292] and found["step"] == EPOCHS * STEPS
    assert [p["is_tracked"] for p in found["points"]] == [
        n in ("power-0.05", "power-0.2", "ema-0.99", "model") for n in by_name
    ]
    # the average that evaluation measures is among them
    data = open_data(RunDirectory(copy).config(), Path(RunDirectory(copy).provenance["data_dir"]))
    numbers = evaluate_run(copy, data, data_window(data))
    for measure in ("mean_log10_mse", "snr_weighted_mse"):
        assert by_name["ema-0.99"][measure] == pytest.approx(numbers[f"val_{measure}"], rel=1e-6)


def test_a_dry_run_of_the_curve_writes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(copy.rglob("*"))
    assert command.main([str(copy), "--ema-curve", "--num", "3", "--dry-run"]) == 0
    assert "would measure" in capsys.readouterr().out and sorted(copy.rglob("*")) == before


def test_a_curve_is_of_a_run_and_of_some_lengths(run: Path) -> None:
    with pytest.raises(InputError, match="--num is 0; give at least 1"):
        command.main([str(run), "--ema-curve", "--num", "0"])
    with pytest.raises(InputError, match="name its run"):
        command.main([str(run / "checkpoints" / "step-00000030"), "--ema-curve"])


def test_samples_at_the_end_are_drawn_by_each_of_ema_lengths(
    copy: Path, digits: Path, digits_output: Path
) -> None:
    directory = RunDirectory(copy)
    config = directory.config()
    options = {"SAMPLING_STEPS": (2,), "SAMPLING_NUM": 256, "EMA_LENGTHS": (0.01, 0.1, 0.2)}
    config = replace(
        config,
        EVALUATION=replace(config.EVALUATION, **options),  # type: ignore[arg-type]
        TRAINING=replace(config.TRAINING, OUTPUT_DIR=str(digits_output)),
    )
    data = open_data(config, digits)
    quality = measure_samples(copy, config, data, data_window(data), ALONE)
    assert quality is not None
    # what the snapshots cannot give is left out with the reason
    (left,) = quality.left_out
    assert left.ema_length == 0.01 and left.reason
    first, second = quality.points
    assert (first.ema_length, second.ema_length) == (0.1, 0.2) and first.kid != second.kid
    pictures = read_pictures(copy)
    assert pictures is not None and not (pictures.images[0] == pictures.images[1]).all()
    model = load_network(copy, PowerEma(0.2))
    labels = torch.arange(BATCH, device=next(model.network.parameters()).device) % 10
    ids = torch.arange(BATCH, device=labels.device)
    sampler = sampler_of(sampling_walks(config)[2], config, None)
    drawn = draw_batch(model.network, model.schedule, ids, (1, 8, 8), sampler, labels=labels)
    assert (drawn == pictures.images[1][:BATCH]).all()
