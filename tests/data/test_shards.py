import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpm.data import open_source, packing, preparing
from ddpm.data.index import open_index
from tests.support.processes import at_once, exit_codes
from tests.support.shard_data import (
    GREY,
    LABELS,
    make_config,
    picture,
    prepare_digits,
    problems_of,
    run_python,
    sorted_shards,
)
from tests.support.tree import ROOT


@pytest.mark.slow
def test_processes_that_start_together_pack_once(tmp_path: Path, digits: Path) -> None:
    with at_once(3, prepare_digits, tmp_path / "out", folder=tmp_path) as started:
        assert exit_codes([*started]) == [0, 0, 0]
    (answer,) = {said.read_text() for said in started.values()}
    sha256, folder = answer.split()
    assert sha256 == open_index(digits).sha256
    assert [path.name for path in (tmp_path / "out/shards").iterdir()] == [Path(folder).name]
    index = preparing.prepare(make_config("digits", tmp_path / "out"))
    assert index.folder == Path(folder)


def test_a_fitting_configuration_has_no_problems(digits: Path) -> None:
    assert preparing.check(make_config(digits), open_index(digits)) == []
    for path in (digits, "digits"):
        assert preparing.source_problems(make_config(path)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"TRAINING__INPUT_IMAGE_CHANNEL": 3}, ["1 channel", "INPUT_IMAGE_CHANNEL is 3"]),
        ({"TRAINING__INPUT_IMAGE_SIZE": 16}, ["8x8", "16x16", "CROP_SIZE of at most 8"]),
        (
            {"DATASET__PREPROCESSING__CROP_SIZE": 9},
            ["8x8", "9x9", "DATASET.PREPROCESSING.CROP_SIZE"],
        ),
        ({"TRAINING__NETWORK__NUM_CLASSES": 9}, ["0..8", "the first is 9", "NUM_CLASSES is 9"]),
    ],
)
def test_data_that_does_not_fit(digits: Path, changes: dict[str, object], words: list[str]) -> None:
    index = open_index(digits)
    (problem,) = preparing.check(make_config(digits, **changes), index)
    assert problem.startswith(f"DATASET.PATH {digits}")
    assert all(word in problem for word in words), problem
    assert problem in preparing.source_problems(make_config(digits, **changes))


def test_several_misfits_come_at_once(digits: Path) -> None:
    changes = {"TRAINING__INPUT_IMAGE_CHANNEL": 3, "TRAINING__INPUT_IMAGE_SIZE": 16}
    found = preparing.source_problems(make_config("digits", **changes))
    assert len(found) == 2


def test_classes_without_labels_and_empty_splits(tmp_path: Path) -> None:
    pixels = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "in.npz", images=pixels)
    index = packing.pack(open_source(tmp_path / "in.npz", None), tmp_path / "out")
    (problem,) = preparing.check(
        make_config(tmp_path / "out", DATASET__VALIDATION_FRACTION=0.0), index
    )
    assert "no labels" in problem
    changes = {"TRAINING__NETWORK__NUM_CLASSES": None}
    draws = {0.001: "none falls to validation", 0.999: "all 3 samples fall to validation"}
    for fraction, words in draws.items():
        config = make_config(tmp_path / "out", DATASET__VALIDATION_FRACTION=fraction, **changes)
        (problem,) = preparing.check(config, index)
        assert words in problem


def test_source_problems_see_sources_without_packing(tmp_path: Path) -> None:
    assert "does not exist" in preparing.source_problems(make_config(tmp_path / "nothing"))[0]
    path = tmp_path / "in.npz"
    np.savez(path, images=np.zeros((9, 4, 4, 3), np.uint8), kind=np.zeros(9, int))
    assert "'labels'" in preparing.source_problems(make_config(path))[0]
    found = preparing.source_problems(make_config(path, DATASET__LABEL_KEY="kind"))
    assert len(found) == 2 and "3 channel" in found[0] and "4x4" in found[1]
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/a.tar.gz").touch()
    (tmp_path / "tars/b.tar").touch()
    assert "compressed" in preparing.source_problems(make_config(tmp_path / "tars"))[0]


def test_labels_are_judged_before_anything_is_packed(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, labels=np.where(np.arange(40) == 7, 12, LABELS))
    *_, problem = preparing.source_problems(make_config(path))
    assert "outside 0..9" in problem and "12 of sample 7" in problem
    np.savez(path, images=GREY, labels=LABELS - 1)
    assert "below 0" in "".join(preparing.source_problems(make_config(path)))
    (problem,) = preparing.source_problems(make_config("digits", TRAINING__NETWORK__NUM_CLASSES=3))
    assert "outside 0..2" in problem
    assert list(tmp_path.iterdir()) == [path]


def test_prepare_uses_shards_where_they_lie(tmp_path: Path, digits: Path) -> None:
    assert preparing.prepare(make_config(digits, tmp_path / "out")).folder == digits
    sorted_shards(tmp_path / "foreign", "ab", 4)
    index = preparing.prepare(make_config(tmp_path / "foreign", tmp_path / "out"))
    assert index.folder == tmp_path / "foreign" and index.num_samples == 8
    assert not (tmp_path / "out").exists()


def test_prepare_packs_anew_when_the_source_changes(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, labels=LABELS)
    config = make_config(path, tmp_path / "out")
    first = preparing.prepare(config)
    assert first.folder.parent == tmp_path / "out/shards"
    assert preparing.prepare(config).folder == first.folder
    np.savez(path, images=255 - GREY, labels=LABELS)
    second = preparing.prepare(config)
    assert second.folder != first.folder and second.sha256 != first.sha256
    unlabelled = make_config(path, tmp_path / "out", DATASET__LABEL_KEY=None, **NO_CLASSES)
    assert preparing.prepare(unlabelled).num_classes is None


NO_CLASSES: dict[str, object] = {"TRAINING__NETWORK__NUM_CLASSES": None}


def test_prepare_leaves_nothing_of_a_bad_source(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez(path, images=GREY, labels=LABELS - 1)
    problems_of(lambda: preparing.prepare(make_config(path, tmp_path / "a/out")))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_opening_and_checking_need_nothing_heavy(digits: Path) -> None:
    code = """
import sys
from ddpm import config
from ddpm.data import open_index, preparing as shards
index = open_index(sys.argv[1])
c = config.from_dict({"DATASET": {"NAME": "d", "PATH": sys.argv[1]},
                      "TRAINING": {"INPUT_IMAGE_SIZE": 8, "INPUT_IMAGE_CHANNEL": 1}})
assert shards.check(c, index) == [] == shards.source_problems(c)
print(sorted({"torch", "webdataset", "sklearn", "ray", "pandas"} & set(sys.modules)))
"""
    assert run_python(code, digits).communicate(timeout=60)[0].strip() == "[]"


@pytest.mark.slow
def test_shards_of_somebody_else_are_a_problem_not_a_traceback(tmp_path: Path) -> None:
    """Root may read anything, unless it gives up just that."""
    folder = tmp_path / "shards"
    folder.mkdir()
    humble = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    code = """
import sys
from ddpm import config
from ddpm.data import open_index, preparing as shards
loaded = config.load("configs/digits.yaml", [f"DATASET.PATH={sys.argv[1]}"])
print(shards.source_problems(loaded))
"""
    words = [*(humble if os.geteuid() == 0 else ()), sys.executable, "-c", code, str(folder)]
    folder.chmod(0)
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    folder.chmod(0o700)
    assert "may not be read by you" in done.stdout, done.stderr


def test_what_training_would_refuse_is_refused_before_anything_is_packed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures of 20 to 90 pixels, by their headers."""
    folder = tmp_path / "in"
    for side in (20, 50, 90):
        (folder / "ant").mkdir(parents=True, exist_ok=True)
        (folder / "ant" / f"{side}.png").write_bytes(picture(np.zeros((side, side), np.uint8)))
    whole: dict[str, object] = {"DATASET__VALIDATION_FRACTION": 0.0}
    wide = make_config(folder, TRAINING__INPUT_IMAGE_SIZE=128, **whole)
    (problem,) = preparing.source_problems(wide)
    assert problem.startswith(f"DATASET.PATH {folder}: images have only 20x20 pixels")
    assert "3 of 3 images are smaller" in problem and "RESIZE=true" in problem
    resized = whole | {"DATASET__PREPROCESSING__RESIZE": True}
    large = make_config(folder, TRAINING__INPUT_IMAGE_SIZE=128, **resized)
    assert preparing.source_problems(large) == [] and not caplog.messages
    assert (
        preparing.source_problems(make_config(folder, TRAINING__INPUT_IMAGE_SIZE=16, **whole)) == []
    )
    (warned,) = caplog.messages
    assert "16x16 keeps less than half of 2 image(s) (found: 20x20 to 90x90)" in warned
    (folder / "ant" / "odd.png").write_bytes(picture(np.zeros((20, 20, 4), np.uint8)))
    two = [make_config(folder, TRAINING__SEED=seed, **resized) for seed in range(2)]
    (problem,) = preparing.source_problems(*two)
    assert "odd.png: has an alpha channel" in problem
