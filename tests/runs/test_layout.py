"""A run's configuration is what its checkpoints were trained with, at whichever door it is read."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ddpm import config as configuration
from ddpm.cli import evaluate, report, sample, train
from ddpm.errors import InputError, StorageError, run_main
from ddpm.runs import checkpoint, layout
from ddpm.runs.directory import RunDirectory
from ddpm.runs.layout import find_run, load_run
from ddpm.sweep import load_sweep
from tests.support.tiny_training import DIGITS, overrides
from tests.support.tree import ROOT

pytestmark = pytest.mark.slow  # a training each module

NETWORK = "TRAINING.NETWORK"


def training(out: Path, *more: str) -> list[str]:
    """The command line of a training of a second."""
    keys = (f"{NETWORK}.TIMESTEPS=20", "TRAINING.INLINE_GEN.REVERSE_STRIDE=10")
    keys += ("TRAINING.HYPER_PARAMETERS.EPOCHS=1", "TRAINING.EMA_POWER=[0.05,0.1]")
    keys += ("CLUSTER.GPUS_PER_WORKER=0",)
    return [str(DIGITS), *overrides(*keys, f"TRAINING.OUTPUT_DIR={out}", *more)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training."""
    out = tmp_path_factory.mktemp("out")
    assert train.main(training(out)) == 0
    (done,) = out.rglob(layout.DONE_FILE)
    return done.parent


@contextmanager
def edited(
    run: Path, before: str = "TIMESTEPS: 20", after: str = "TIMESTEPS: 30"
) -> Iterator[None]:
    """The run with another value in its configuration."""
    path = run / layout.CONFIG_FILE
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    try:
        yield
    finally:
        path.write_text(text)


def sampled(source: Path, tmp: Path, *more: str) -> int:
    keys = ("NUM_GEN_IMAGES=2", "NUM_STEPS=2", f"GEN_SAVE_DIR={tmp / 'images'}", *more)
    return sample.main([str(source), *(f"IMAGE_GENERATION.{key}" for key in keys)])


def guided(run: Path, tmp: Path) -> int:
    """Another run draws, this one is the guide."""
    other = shutil.copytree(run, tmp / "other")
    path = other / layout.CONFIG_FILE
    path.write_text(path.read_text().replace("TIMESTEPS: 30", "TIMESTEPS: 20"))
    keys = ("GEN_TASK=class_cond", "GUIDANCE=2.0", f"GUIDE={run}")
    return sampled(other, tmp, *keys)


def reported_of_sweep(run: Path, tmp: Path) -> int:
    folder = tmp / "sweeps" / "one"
    (folder / "ledger").mkdir(parents=True)
    trial = {"trial": "a", "cell": {}, "seed": 0, "status": "done", "run_dir": str(run)}
    (folder / "ledger" / "a.json").write_text(json.dumps(trial))
    (folder / "sweep.json").write_text(json.dumps({"name": "one", "planned": [{"trial": "a"}]}))
    return report.main([str(folder), "--dry-run"])


def swept(run: Path, tmp: Path) -> int:
    """A sweep whose base is the file of a run."""
    tmp.mkdir()
    text = f"BASE: {run / layout.CONFIG_FILE}\nGRID: {{TRAINING.PRED_TYPE: [noise, image]}}\n"
    (tmp / "swept.yaml").write_text(text)
    return 0 if len(load_sweep(tmp / "swept.yaml").trials) == 2 else 1


def out_of(run: Path) -> Path:
    return run.parents[2]


def measured(source: Path, tmp: Path, *more: str) -> int:
    usual = ("--num", "64", "--features", "pixels", "--cache", str(tmp))
    return evaluate.main([str(source), *usual, *more])


def started_from(run: Path, tmp: Path) -> int:
    warm = ("TRAINING.IS_NEW_TRAIN=false", f"TRAINING.TRAINED_H5={run}")
    return train.main(training(tmp, *warm, "--dry-run", "--no-probe"))


DOORS: dict[str, Callable[[Path, Path], int | None]] = {
    "sample": sampled,
    "sample a checkpoint": lambda run, tmp: sampled(run / "checkpoints" / "step-00000002", tmp),
    "guide": guided,
    "evaluate": measured,
    "real images of a run": lambda run, tmp: measured(run, tmp, "--against", str(run)),
    "ema_curve": lambda run, tmp: evaluate.main([str(run), "--ema-curve", "--dry-run"]),
    "report": lambda run, tmp: report.main([str(run), "--dry-run"]),
    "report of a sweep": reported_of_sweep,
    "same command": lambda run, tmp: train.main(training(out_of(run))),
    "resume": lambda run, tmp: train.main(training(out_of(run), "--resume", str(run))),
    "train with its file": lambda run, tmp: train.main([str(run / layout.CONFIG_FILE)]),
    "start from": started_from,
    "sweep": swept,
}


@pytest.mark.parametrize("door", DOORS)
def test_an_edited_configuration_is_refused_at_every_door(
    run: Path, door: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with edited(run):
        assert run_main(lambda: DOORS[door](run, tmp_path / "edited")) == 5
    (line,) = capsys.readouterr().err.splitlines()
    words = r"training_config\.yaml was edited: .* is [0-9a-f]{8}, .*-00000002 .* [0-9a-f]{8}; undo"
    assert re.search(words, line), line
    assert run_main(lambda: DOORS[door](run, tmp_path / "whole")) == 0


def test_where_a_run_lies_and_how_its_file_is_laid_out_are_its_owners_affair(run: Path) -> None:
    with edited(run, "CHECKPOINTS_KEEP: 3", "checkpoints_keep: 7   # disk is cheap"):
        assert load_run(run).TRAINING.CHECKPOINTS_KEEP == 7
    moved = shutil.copytree(run, out_of(run) / "moved")
    assert load_run(moved) == load_run(run)


def test_one_damaged_manifest_leaves_the_one_before_it_to_compare_with(
    run: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    newer = shutil.copytree(
        copy / "checkpoints" / "step-00000002", copy / "checkpoints" / "step-00000004"
    )
    (newer / checkpoint.MANIFEST).write_text("{")
    assert load_run(copy) == load_run(run)
    with edited(copy), pytest.raises(StorageError, match="was edited"):
        load_run(copy)


def test_a_run_without_checkpoint_has_nothing_to_compare_with(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    with edited(copy):
        assert load_run(copy).TRAINING.NETWORK.TIMESTEPS == 30


def test_a_training_that_runs_keeps_the_configuration_it_began_with(
    run: Path, tmp_path: Path
) -> None:
    copy = RunDirectory(shutil.copytree(run, tmp_path / "copy"))
    facts = copy.provenance
    own = copy.config()
    sha256, place = facts["data_sha256"], Path(facts["data_dir"])
    copy.start(own, data_sha256=sha256, data_dir=place, threads=1, command=("train",))
    with edited(copy.path):
        assert copy.config() == own
        copy.close()
        with pytest.raises(StorageError, match="was edited"):
            copy.config()


def test_the_configuration_of_an_earlier_run_keeps_its_hash() -> None:
    """Keys added since are no part of it. A default that changes would make every earlier run look
    edited, and its command would no longer find it: give the new behaviour a key of its own.
    """
    earlier = configuration.load(ROOT / "tests" / "earlier_config.yaml")
    assert sorted(configuration.identifying(earlier)) == [
        "DATASET.NAME",
        "TRAINING.INPUT_IMAGE_CHANNEL",
        "TRAINING.INPUT_IMAGE_SIZE",
        *(f"{NETWORK}.{key}" for key in ("CHANNEL_MULTIPLIER", "FIRST_CHANNEL", "HAS_ATTENTION")),
        f"{NETWORK}.TIMESTEPS",
    ]
    sha256 = "14d1c004dab5a48ec1695e3c4a917bc5f0e145c395d275555c282684ccba5b10"
    assert configuration.config_sha256(earlier) == sha256


def named(out: Path, run_id: str, started: float) -> Path:
    """A run directory as far as its name and its start go."""
    path = out / "digits_8x8x1" / "unet" / f"cosine_20260101-000000-0_{run_id}"
    path.mkdir(parents=True)
    (path / layout.PROVENANCE_FILE).write_text("{}")
    os.utime(path / layout.PROVENANCE_FILE, (started, started))
    return path


def test_a_short_name_is_the_run_whose_id_begins_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("training_outputs")
    one, two = named(out, "0123aaaa", 2e9), named(out, "0124bbbb", 1e9)
    other = named(tmp_path / "out", "0123aaaa", 1e9)
    for text, path in {
        "latest": one,
        "0124": two,
        "0123aaaa": one,
        "training_outputs/latest": one,
        f"{tmp_path}/out/0123": other,
        "out": Path("out"),
        "no/such/path": Path("no/such/path"),
        "digits": Path("digits"),
    }.items():
        assert find_run(text).resolve() == path.resolve(), text
    with pytest.raises(InputError, match="several runs; give more digits:(.*\n)*.*0124bbbb"):
        find_run("012")
    with pytest.raises(InputError, match="^out2/latest: out2 holds no run yet; train one, or"):
        find_run("out2/latest")
    for text in ("fff", "out/0124"):
        with pytest.raises(InputError, match=f"{text}: no such path, and no run in "):
            find_run(text)
    (tmp_path / "latest").mkdir()
    assert find_run("latest") == Path("latest")
