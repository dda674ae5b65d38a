"""Samples measured from end to end: real images at their floor, others not; bad input."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.cli import evaluate as command
from ddpm.data import open_source, packing
from ddpm.data.index import open_index
from ddpm.errors import InputError
from ddpm.metrics.evaluation import METRICS, class_score
from ddpm.metrics.features import ClassSums
from ddpm.metrics.reference import RealData, pixel_features
from ddpm.metrics.request import evaluation_request
from ddpm.metrics.samples import (
    cells,
    draw_samples,
    evaluate_samples,
    read_samples,
)
from tests.support.digits_runs import digit_images, digits_run, real_digits
from tests.support.tree import ROOT


@pytest.fixture(scope="module")
def real(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RealData:
    return real_digits(digits, tmp_path_factory.mktemp("real"))


def saved(path: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    np.savez(path, images=images, **({} if labels is None else {"labels": labels}))
    return path


Record = dict[str, Any]


def measured(real: RealData, path: Path, split: str = "train") -> Record:
    return evaluate_samples(read_samples(path, real), real, split, pixel_features(real))


def values(record: Record) -> dict[str, float]:
    found = record["measures"].items()
    return {name: one["value"] for name, one in found if one["value"] is not None}


def floors(record: Record) -> dict[str, Any]:
    return {name: one.get("floor") for name, one in record["measures"].items()}


@pytest.fixture(scope="module")
def held_out(real: RealData, tmp_path_factory: pytest.TempPathFactory) -> Record:
    ids = real.ids("validation")
    path = saved(tmp_path_factory.mktemp("held") / "x.npz", real.images(ids), real.labels(ids))
    return measured(real, path)


@pytest.mark.slow
def test_held_out_images_are_at_the_floor_of_every_measure(held_out: Record) -> None:
    assert held_out["floor_images"] == 191
    found = values(held_out)
    for name, floor in floors(held_out).items():
        if isinstance(floor, dict):
            assert found[name] == pytest.approx(floor["value"], rel=1e-6), name
    for name, fresh in (("kid", 0.0), ("nearer", 0.5), ("copies", 0.01)):
        one = held_out["measures"][name]
        assert one["low"] <= fresh <= one["high"], name


@pytest.mark.slow
def test_training_images_are_told_as_copies_and_noise_is_told_as_noise(
    real: RealData, held_out: Record, tmp_path: Path
) -> None:
    copied = values(measured(real, saved(tmp_path / "a.npz", real.images(real.train_ids[:300]))))
    assert copied["copies"] == copied["nearer"] == 1.0
    random = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    noise, own = values(measured(real, saved(tmp_path / "b.npz", random))), values(held_out)
    assert noise["precision"] < 0.1 < own["precision"] and noise["coverage"] < 0.1
    assert noise["fid_infinity"] > 10 * own["fid_infinity"] and noise["kid"] > 10 * abs(own["kid"])
    assert noise["nearer"] < 0.05 and noise["copies"] == 0


@pytest.fixture(scope="module")
def digits_400(real: RealData, tmp_path_factory: pytest.TempPathFactory) -> Record:
    path = tmp_path_factory.mktemp("digits") / "x.npz"
    return measured(real, saved(path, digit_images(400)[0]))


@pytest.mark.slow
def test_more_noise_is_farther(real: RealData, digits_400: Record, tmp_path: Path) -> None:
    noisy = (
        measured(real, saved(tmp_path / f"{noise}.npz", digit_images(400, noise)[0]))
        for noise in (40, 120)
    )
    found = [values(record) for record in (digits_400, *noisy)]
    for key in ("fid", "fid_infinity", "kid"):
        assert found[0][key] < found[1][key] < found[2][key], key


@pytest.mark.slow
def test_what_cannot_be_measured_is_left_out_with_its_reason(
    real: RealData, tmp_path: Path
) -> None:
    found = measured(real, saved(tmp_path / "few.npz", digit_images(100)[0]))
    record = found["measures"]
    told = {name: one["reason"] for name, one in record.items() if one["value"] is None}
    assert told["fid"] == told["fid_infinity"]
    assert told["fid"].startswith("needs 160 images for 32 features, there are 100")
    assert "tell no classes" in told["class_accuracy"]
    assert {"kid", "precision", "nearer"} <= values(found).keys()
    assert record["fid"] == {"value": None, "reason": told["fid"]}
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert "–" in cells(METRICS["fid"], record["fid"])


@pytest.mark.slow
def test_a_number_that_depends_on_n_has_a_floor_at_the_same_n_only(
    held_out: Record, digits_400: Record
) -> None:
    there = {name for name, floor in floors(digits_400).items() if floor is not None}
    assert not {"fid", "recall", "coverage"} & there
    assert {"fid_infinity", "precision"} <= there
    assert floors(held_out)["recall"] is not None


@pytest.mark.slow
def test_the_order_of_the_samples_does_not_matter_to_moments(
    real: RealData, tmp_path: Path
) -> None:
    images = digit_images(300, 20)[0]
    one = values(measured(real, saved(tmp_path / "a.npz", images)))
    two = values(measured(real, saved(tmp_path / "b.npz", images[::-1])))
    for key in ("fid", "precision", "recall", "density", "coverage", "nearer", "copies"):
        assert two[key] == pytest.approx(one[key], rel=1e-9), key


# Bad input


def problems(real: RealData, path: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        measured(real, path, split)
    return "\n".join(caught.value.problems)


@pytest.mark.slow
def test_too_few_images_are_refused(real: RealData, tmp_path: Path) -> None:
    told = problems(real, saved(tmp_path / "x.npz", digit_images(63)[0]))
    assert "63 images are too few for any measure; give 64 at least" in told


@pytest.mark.slow
def test_a_constant_set_is_refused(real: RealData, tmp_path: Path) -> None:
    images = np.repeat(digit_images(1)[0], 100, axis=0)
    assert "all 100 images are the same one" in problems(real, saved(tmp_path / "x.npz", images))


def test_another_size_or_number_of_channels_is_refused(real: RealData, tmp_path: Path) -> None:
    wide = saved(tmp_path / "wide.npz", np.zeros((100, 8, 9, 1), np.uint8))
    assert "image 0 is 8x9 with 1 channel(s)" in problems(real, wide)
    colour = saved(tmp_path / "colour.npz", np.zeros((100, 8, 8, 3), np.uint8))
    assert "image 0 is 8x8 with 3 channel(s)" in problems(real, colour)


def test_labels_that_are_no_classes_of_the_data_are_refused(real: RealData, tmp_path: Path) -> None:
    images, labels = digit_images(100)
    path = saved(tmp_path / "x.npz", images, labels + 5)
    assert "has the label 14; digits has the classes 0 to 9" in problems(real, path)


def test_minus_one_means_no_label(real: RealData, tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", digit_images(100)[0], np.full(100, -1))
    assert read_samples(path, real).labels is None


def folder_of_png(folder: Path, images: np.ndarray, labels: np.ndarray | None = None) -> Path:
    for number, image in enumerate(images):
        place = folder if labels is None else folder / str(labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(place / f"{number:04d}.png")
    return folder


def test_a_corrupt_picture_is_named(real: RealData, tmp_path: Path) -> None:
    folder = folder_of_png(tmp_path / "png", digit_images(100)[0])
    broken = folder / "0042.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    assert "0042.png" in problems(real, folder)


@pytest.mark.slow
def test_a_folder_an_npz_and_shards_of_the_same_images_give_the_same(
    real: RealData, tmp_path: Path
) -> None:
    images, labels = digit_images(200, 10)
    order = np.argsort(labels, kind="stable")  # a folder of classes lists them so
    images, labels = images[order], labels[order]
    folder = folder_of_png(tmp_path / "png", images, labels)
    npz = saved(tmp_path / "x.npz", images, labels)
    floats = saved(tmp_path / "f.npz", images.astype(np.float32) / 255, labels)
    adm = tmp_path / "adm.npz"
    np.savez(adm, arr_0=images, arr_1=labels)
    packing.pack(open_source(npz), tmp_path / "shards")
    for path in (npz, folder, floats, adm):
        found = read_samples(path, real)
        assert found.labels is not None and (found.labels == labels).all(), path
        assert (found.at(range(len(found))) == images).all(), path
    one, packed = (values(measured(real, path)) for path in (npz, tmp_path / "shards"))
    assert packed["fid"] == pytest.approx(one["fid"], rel=1e-9)  # in another order


# The command


def run(*words: object) -> int:
    return command.main([str(word) for word in words])


@pytest.mark.slow
def test_a_run_is_drawn_from_measured_and_recorded(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = digits_run(digits, tmp_path)
    assert run(path, "--num", 200, "--features", "pixels") == 0
    told = capsys.readouterr().out
    assert "FID, n → ∞" in told and "protocol: 200 samples" in told and "1,606 train images" in told
    record = json.loads((path / "evaluation_of_samples_pixels.json").read_text())
    assert record["samples"]["n"] == 200 and record["samples"]["step"] == 3
    assert record["measures"]["kid"]["low"] < record["measures"]["kid"]["high"]
    assert run(path, "--num", 200, "--features", "pixels") == 0  # nothing is drawn again
    again = json.loads((path / "evaluation_of_samples_pixels.json").read_text())
    assert again["measures"] == record["measures"]
    assert len(list((path / "generated").glob("*.npz"))) == 1


@pytest.mark.slow
def test_the_run_s_own_way_of_drawing_changes_nothing_and_a_given_one_is_said(
    digits: Path, tmp_path: Path
) -> None:
    own = {"GUIDANCE": 2.0, "GUIDANCE_INTERVAL": [-2.0, 2.0], "SPACING": "karras"}
    path = digits_run(digits, tmp_path, IMAGE_GENERATION=own)
    usual = evaluation_request(path, 64, (), None).options
    assert (usual.GUIDANCE, usual.GUIDANCE_INTERVAL, usual.SPACING) == (1.0, None, "trailing")
    words = ("SAMPLER=heun", "SPACING=logsnr", "NUM_STEPS=2", "GUIDANCE=2", "GUIDANCE_RESCALE=0.5")
    given = evaluation_request(path, 64, [f"IMAGE_GENERATION.{word}" for word in words], None)
    told = "heun, spacing logsnr, 2 steps, guidance 2 rescaled by 0.5, ema-"
    assert told in draw_samples(given).protocol


@pytest.mark.slow
def test_runs_are_compared_on_the_same_labels(digits: Path, tmp_path: Path) -> None:
    path = digits_run(digits, tmp_path)
    samples = draw_samples(evaluation_request(path, 70, (), None))
    assert samples.labels is not None
    assert samples.labels.tolist() == [i % 10 for i in range(70)]


def test_every_run_is_drawn_from_in_the_same_way_unless_told(digits: Path, tmp_path: Path) -> None:
    path = digits_run(digits, tmp_path, IMAGE_GENERATION={"RANDOM_SEED": 7})
    usual = evaluation_request(path, 70, (), None)
    assert usual.seed == 0 and usual.options.DDIM_ETA == 0 and usual.options.CLIP_DENOISE
    told = evaluation_request(path, 70, ("image_generation.ddim_eta=1.0",), None)
    assert told.options.DDIM_ETA == 1.0 and told.seed == 0
    with pytest.raises(InputError, match="images are measured as bytes"):
        evaluation_request(path, 70, ("IMAGE_GENERATION.PIXELS=float",), None)


def test_a_dry_run_writes_nothing(
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = digits_run(digits, tmp_path)
    images = saved(tmp_path / "x.npz", *digit_images(100))
    before = sorted(tmp_path.rglob("*"))
    assert run(path, "--dry-run") == 0
    told = capsys.readouterr().out
    assert "would measure 2000 images (class_cond, seed 0)" in told and "by classifier" in told
    monkeypatch.chdir(tmp_path)
    for against in ("digits", digits, path):
        assert run(images, "--against", against, "--dry-run") == 0
        assert "by classifier features" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_images_need_something_real_to_be_compared_with(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npz", digit_images(100)[0])
    with pytest.raises(InputError) as caught:
        run(path, "IMAGE_GENERATION.NUM_STEPS=3", "--weights", "w", "--num", 0)
    told = "\n".join(caught.value.problems)
    assert "name the real images with --against" in told
    assert "is no run: its images are there" in told
    assert "--weights is for --features inception or clip" in told and "--num 0" in told


@pytest.mark.slow
def test_images_are_compared_with_data_named_by_path_or_by_run(
    digits: Path, tmp_path: Path
) -> None:
    path = saved(tmp_path / "x.npz", digit_images(200)[0])
    cache = tmp_path / "cache"
    for against in (digits, digits_run(digits, tmp_path / "out")):
        assert run(path, "--against", against, "--features", "pixels", "--cache", cache) == 0
        record = json.loads((tmp_path / "x.npz.evaluation_of_samples_pixels.json").read_text())
        assert record["reference"]["data_sha256"] == open_index(digits).sha256
    with pytest.raises(InputError, match="--num 300: .* has 200 images"):
        run(path, "--against", digits, "--features", "pixels", "--num", 300, "--cache", cache)


def test_data_that_changed_since_the_training_is_refused(digits: Path, tmp_path: Path) -> None:
    path = digits_run(digits, tmp_path)
    facts = json.loads((path / "provenance.json").read_text())
    (path / "provenance.json").write_text(json.dumps(facts | {"data_sha256": "f" * 64}))
    with pytest.raises(InputError, match="was trained on data ffffffff"):
        run(path, "--features", "pixels")


def test_a_classifier_needs_labels(digits: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    images, _ = digit_images(400)
    packing.pack(open_source(saved(tmp_path / "y.npz", images), None), bare)
    path = saved(tmp_path / "x.npz", digit_images(100, 5)[0])
    with pytest.raises(InputError, match="classifier features need data of two classes or more"):
        run(path, "--against", bare, "--features", "classifier", "--cache", tmp_path / "cache")


def test_inception_is_refused_before_anything_is_drawn(digits: Path, tmp_path: Path) -> None:
    path = digits_run(digits, tmp_path)
    with pytest.raises(InputError, match="inception needs"):
        run(path, "--features", "inception")
    assert not (path / "generated").exists()


def test_a_source_that_is_nothing_is_refused(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "none", "--against", "digits")
    (tmp_path / "empty").mkdir()
    shutil.copy(__file__, tmp_path / "empty")
    with pytest.raises(InputError, match="holds no images"):
        run(tmp_path / "empty", "--against", digits, "--cache", tmp_path / "cache")


def judged(p: np.ndarray) -> ClassSums:
    """Sums of 16 groups of images with class probabilities (n, K)."""
    groups = [torch.from_numpy(p[k::16]) for k in range(16)]
    entropies = [-(g * g.clamp(min=1e-12).log()).sum() for g in groups]
    return ClassSums(
        counts=torch.tensor([len(g) for g in groups], dtype=torch.float64),
        entropies=torch.stack(entropies),
        classes=torch.stack([g.sum(dim=0) for g in groups]),
        hits=None,
    )


def test_sure_and_even_is_the_number_of_classes_and_all_alike_is_one() -> None:
    # rows of 80: every group has every class equally often
    sure = np.eye(5)[np.repeat(np.arange(5), 16).tolist() * 10]
    assert class_score(judged(sure)).value == pytest.approx(5.0, rel=1e-9)
    alike = np.tile([0.7, 0.2, 0.1], (160, 1))
    assert class_score(judged(alike)).value == pytest.approx(1.0, abs=1e-9)


@pytest.mark.slow
def test_the_bias_of_few_images_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    found = [class_score(judged(np.eye(10)[rng.integers(0, 10, 160)])).value for _ in range(200)]
    # of 160 images the plain score is 9 / 320 of 10 too small
    assert abs(np.mean(found) - 10) < 0.3 * 10 * 9 / 320


@pytest.mark.slow
def test_the_pages_example_measures_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    numbers, left_out = names["numbers"], names["left_out"]
    assert numbers["kid"].low > 1 and numbers["precision"].value < 0.01  # of noise
    assert "tell no classes" in left_out["class_accuracy"]
