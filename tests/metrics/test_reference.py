"""The real side: statistics of a split are its own, made once, refused for anything else."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm.errors import InputError
from ddpm.metrics import classifier
from ddpm.metrics.features import Moments
from ddpm.metrics.reference import RealData, classifier_features, pixel_features, reference_of
from tests.support.digits_runs import real_digits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RealData:
    """With all that these tests compute; those that change its files have a copy."""
    return real_digits(digits, tmp_path_factory.mktemp("real"))


@pytest.fixture
def own(real: RealData, tmp_path: Path) -> RealData:
    """The same with files of its own."""
    for split in ("train", "validation"):
        reference_of(real, split, pixel_features(real))
    return replace(real, folder=shutil.copytree(real.folder, tmp_path / "own"))


def files(real: RealData, start: str) -> list[Path]:
    return sorted(real.folder.glob(f"{start}*.json"))


def test_the_split_is_that_of_training(real: RealData) -> None:
    train, held_out = real.ids("train"), real.ids("validation")
    assert len(train) == real.data.num_train and len(held_out) == real.data.num_validation
    assert sorted([*train, *held_out]) == list(range(1797))
    assert (real.data.validation(10_000).ids.numpy() == held_out).all()


def test_images_come_as_the_bytes_they_were_packed_from(real: RealData) -> None:
    from sklearn.datasets import load_digits

    packed = np.concatenate(list(real.batches(np.arange(1797))))
    known = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
    assert sorted(image.tobytes() for image in packed) == sorted(i.tobytes() for i in known)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_moments_are_those_of_every_image_of_the_split(real: RealData, split: str) -> None:
    extractor = pixel_features(real)
    found = reference_of(real, split, extractor)
    vectors = extractor(real.images(real.ids(split))).vectors
    wanted = Moments.of(vectors)
    assert found.moments.count == len(real.ids(split))
    assert torch.allclose(found.moments.mean, wanted.mean, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.moments.scatter, wanted.scatter, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.kept, vectors)  # in the order of the images
    assert {len(block) for block in found.blocks()} <= {len(vectors) // 16, len(vectors) // 16 + 1}


def test_they_are_computed_once(own: RealData) -> None:
    first = reference_of(own, "train", pixel_features(own))
    own.data.close()
    before = {path: path.stat().st_mtime_ns for path in own.folder.glob("*.safetensors")}
    again = reference_of(own, "train", pixel_features(own))
    assert torch.equal(first.kept, again.kept)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_statistics_of_another_split_are_refused(own: RealData) -> None:
    (train,), (held_out,) = files(own, "train-"), files(own, "validation-")
    for end in (".json", ".safetensors"):
        shutil.copy(train.with_suffix(end), held_out.with_suffix(end))
    with pytest.raises(InputError, match='split: "train" is kept, "validation" is wanted'):
        reference_of(own, "validation", pixel_features(own))


def test_statistics_of_another_extractor_or_data_set_are_refused(own: RealData) -> None:
    (path,) = files(own, "train-")
    content = json.loads(path.read_text())
    for fact in ("extractor_sha256", "data_sha256", "count", "image_shape"):
        facts = content["facts"] | {fact: "other"}
        path.write_text(json.dumps(content | {"facts": facts}))
        with pytest.raises(InputError, match=f'{fact}: "other" is kept'):
            reference_of(own, "train", pixel_features(own))


def test_a_classifier_is_trained_once_and_says_how_good_it_is(
    real: RealData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "CLASSIFIER_STEPS", 60)
    first = classifier_features(real)
    assert first.accuracy is not None and first.accuracy > 0.6
    vectors = first(real.images(real.train_ids[:500])).vectors
    assert vectors.mean(dim=0).abs().max() < 0.3 and (vectors.std(dim=0) - 1).abs().max() < 0.3

    def not_again(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("ddpm.metrics.reference.train_classifier", not_again)
    again = classifier_features(real)
    assert again.sha256 == first.sha256 and again.accuracy == first.accuracy
    assert torch.equal(again(real.images(real.train_ids[:500])).vectors, vectors)
