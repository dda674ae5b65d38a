"""Data that come split: train/ and val/ stay what they are, in shards, training and evaluation."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddpm.cli import main
from ddpm.data import Dataset, open_source, packing, preparing
from ddpm.data.index import open_index
from ddpm.data.source import is_held_out, own_split
from ddpm.metrics.reference import real_data
from tests.support.shard_data import (
    LABELS,
    as_multiset,
    make_config,
    problems_of,
    save_pictures,
    stored,
)

CLASSES = ("ant", "bee", "cat", "dog")
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
TRAIN, VAL = slice(0, 28), slice(28, 40)


def image_net(root: Path, held_out: str = "val", has_classes: bool = True) -> Path:
    """IMAGES in train/ and another folder, as ImageNet lies in its folders."""
    for part, rows in (("train", TRAIN), (held_out, VAL)):
        names = [
            f"{CLASSES[LABELS[row]]}/{row}.png" if has_classes else f"{row}.png"
            for row in range(40)[rows]
        ]
        save_pictures(root / part, IMAGES[rows], names)
    return root


def grey(rows: slice) -> list[NDArray]:
    return list(IMAGES[rows, ..., None])


@pytest.mark.slow
@pytest.mark.parametrize("held_out", ["val", "Test", "validation"])
def test_the_split_that_is_there_is_taken_and_said(
    tmp_path: Path, held_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = open_source(image_net(tmp_path / "in", held_out))
    assert source.split == (("train", 28), (held_out, 12)) and source.class_names == CLASSES
    index = packing.pack(source, tmp_path / "out", samples_per_shard=10)
    said = f"28 images of train and 12 images of {held_out}, the split that is there"
    assert any(said in line for line in caplog.messages)
    word = held_out.lower()
    assert "4 classes, 12 for validation, in 5 shards" in str(index)
    names = [f"shard-train-00000{n}.tar" for n in range(3)] + [
        f"shard-{word}-00000{n}.tar" for n in range(2)
    ]
    assert [shard.name for shard in index.shards] == names
    content = json.loads((tmp_path / "out/index.json").read_text())
    assert [s["split"] for s in content["shards"]] == ["train"] * 3 + [held_out] * 2
    assert index.labels is not None and index.held_out is not None
    found = stored(open_index(tmp_path / "out"))
    for rows, mask in ((TRAIN, ~index.held_out), (VAL, index.held_out)):
        some = [found[sample] for sample in np.flatnonzero(mask)]
        assert as_multiset(some, index.labels[mask]) == as_multiset(grey(rows), LABELS[rows])
    # Validation looks at the first of them: they lie in random order.
    assert index.labels[28:].tolist() != sorted(index.labels[28:].tolist())


def test_training_and_evaluation_see_their_own_part(tmp_path: Path) -> None:
    folder = image_net(tmp_path / "in")
    config = make_config(folder, tmp_path / "out")
    assert preparing.source_problems(config) == []
    index = preparing.prepare(config)
    data = Dataset(index, config.DATASET, (1, 8, 8), seed=0)
    assert (data.num_train, data.num_validation) == (28, 12)

    def pixels(images: torch.Tensor) -> list[NDArray]:
        levels = ((images + 1) * 127.5).round().to(torch.uint8)
        return list(levels.permute(0, 2, 3, 1).numpy())

    trained = data.read(data.order(torch.arange(28)))
    assert trained.labels is not None
    seen = as_multiset(pixels(trained.images), trained.labels.numpy())
    assert seen == as_multiset(grey(TRAIN), LABELS[TRAIN])
    validation = data.validation(100)
    assert as_multiset(pixels(validation.images), None) == as_multiset(grey(VAL), None)
    real = real_data(config, None)
    assert real.ids("validation").tolist() == data.validation_ids(100).tolist()
    assert as_multiset(list(real.images(real.ids("validation"))), None) == as_multiset(
        grey(VAL), None
    )


def test_a_fraction_beside_a_split_is_refused(tmp_path: Path) -> None:
    folder = image_net(tmp_path / "in")
    for fraction in (0, 0.2):
        config = make_config(folder, tmp_path / "out", DATASET__VALIDATION_FRACTION=fraction)
        (problem,) = preparing.source_problems(config)
        assert f"VALIDATION_FRACTION is {fraction}" in problem and "leave it out" in problem


def test_without_classes_and_beside_other_parts(tmp_path: Path) -> None:
    folder = image_net(tmp_path / "in", has_classes=False)
    save_pictures(folder / "test", IMAGES[:3], ["a.png", "b.png", "c.png"])
    source = open_source(folder)
    assert source.split == (("train", 28), ("val", 12)) and not source.has_labels
    assert "3 file(s) not read: 3 .png (test/a.png" in source.notes[1]


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = image_net(tmp_path / "in")
    save_pictures(folder / "val", IMAGES[:1], ["elk/0.png"])
    (problem,) = problems_of(lambda: open_source(folder))
    assert "val has 1 class folder(s)" in problem and "train lacks: elk" in problem
    assert f"or name {folder / 'train'} alone" in problem
    assert open_source(folder / "train").num_samples == 28
    shutil.move(folder / "val/elk/0.png", folder / "val/0.png")
    (folder / "val/elk").rmdir()
    (problem,) = problems_of(lambda: open_source(folder))
    assert f"{folder / 'val'} holds 1 images beside its class folders" in problem
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()
    (problem,) = problems_of(lambda: open_source(folder))
    assert f"{folder / 'val'} holds no images" in problem


def test_other_words_of_the_same_images_are_other_data(tmp_path: Path) -> None:
    """One packed as a split, and as classes that are called train and val."""
    folder = image_net(tmp_path / "in", has_classes=False)
    split, classes = open_source(folder), open_source(folder, classes=("train", "val"))
    assert classes.split == () and classes.class_names == ("train", "val")
    plans = [packing.plan_packing(source) for source in (split, classes)]
    assert plans[0].recipe != plans[1].recipe


def test_the_terminal_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_net(tmp_path / "in")
    assert main.launch("pack", [str(folder), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "28 images of train and 12 images of val" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("val", "train"), ("train", "val")),
        (("test", "training", "valid"), ("training", "valid")),
        (("Train", "TEST"), ("Train", "TEST")),
        (("train", "cat"), None),
        (("val", "test"), None),
        ((), None),
    ],
)
def test_names_of_parts(names: tuple[str, ...], split: tuple[str, str] | None) -> None:
    assert own_split(names) == split
    assert split is None or [is_held_out(part) for part in split] == [False, True]
