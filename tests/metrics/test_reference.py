"""The real side: statistics of a split are its own, made once, refused for anything else."""

import json
import shutil
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


@pytest.fixture
def real(digits: Path, tmp_path: Path) -> RealData:
    return real_digits(digits, tmp_path)


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


def test_they_are_computed_once(real: RealData) -> None:
    extractor = pixel_features(real)
    first = reference_of(real, "train", extractor)
    real.data.close()
    before = {path: path.stat().st_mtime_ns for path in real.folder.iterdir()}
    again = reference_of(real, "train", pixel_features(real))
    assert torch.equal(first.kept, again.kept)
    kept = {path: path.stat().st_mtime_ns for path in real.folder.glob("*.safetensors")}
    assert kept.items() <= before.items()


def replaced(real: RealData, one: Path, other: Path) -> None:
    """Puts the files of `one` in the place of `other`."""
    for end in (".json", ".safetensors"):
        shutil.copy(one.with_suffix(end), other.with_suffix(end))


def test_statistics_of_another_split_are_refused(real: RealData) -> None:
    extractor = pixel_features(real)
    for split in ("train", "validation"):
        reference_of(real, split, extractor)
    (train,), (held_out,) = files(real, "train-"), files(real, "validation-")
    replaced(real, train, held_out)
    with pytest.raises(InputError, match='split: "train" is kept, "validation" is wanted'):
        reference_of(real, "validation", extractor)


def test_statistics_of_another_extractor_or_data_set_are_refused(real: RealData) -> None:
    extractor = pixel_features(real)
    reference_of(real, "train", extractor)
    (path,) = files(real, "train-")
    content = json.loads(path.read_text())
    for fact in ("extractor_sha256", "data_sha256", "count", "image_shape"):
        facts = content["facts"] | {fact: "other"}
        path.write_text(json.dumps(content | {"facts": facts}))
        with pytest.raises(InputError, match=f'{fact}: "other" is kept'):
            reference_of(real, "train", extractor)


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
