"""The classifier: the same bits in every process, fit for every image size, able to tell digits."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ddpm.diffusion.layers import init_weights
from ddpm.metrics import classifier
from ddpm.metrics.classifier import (
    ClassifierFeatures,
    ClassifierNetwork,
    scale_features,
    train_classifier,
)
from ddpm.metrics.features import Moments
from tests.support.processes import exit_codes, forked


def trained(threads: int, path: Path) -> int:
    """A process: the weights after a few steps in `path`."""
    torch.set_num_threads(threads)
    classifier.CLASSIFIER_STEPS = 10
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (300, 8, 8, 1), dtype=np.uint8), rng.integers(0, 4, 300)
    network = train_classifier(lambda places: x[places], y, (1, 8, 8), 4)
    path.write_bytes(safetensors.torch.save(network.state_dict()))
    return 0


@pytest.mark.slow
def test_every_process_trains_the_same_bits_whatever_its_threads(tmp_path: Path) -> None:
    paths = {threads: tmp_path / str(threads) for threads in (1, 2)}
    assert exit_codes([forked(trained, *one) for one in paths.items()]) == [0, 0]
    assert paths[1].read_bytes() == paths[2].read_bytes()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (2, 28, 20), (1, 3, 5), (3, 64, 64)])
def test_every_size_of_image_ends_as_32_features(shape: tuple[int, int, int]) -> None:
    network = init_weights(ClassifierNetwork(shape, 5), 0)
    features, logits = network(torch.zeros(2, *shape))
    assert features.shape == (2, 32) and logits.shape == (2, 5)
    assert network.hidden.in_features <= 64 * 16 * 4


def extractor(network: ClassifierNetwork) -> ClassifierFeatures:
    return ClassifierFeatures(network, "0" * 64, 0.9)


def test_features_do_not_depend_on_how_many_images_there_are() -> None:
    network = extractor(init_weights(ClassifierNetwork((1, 8, 8), 3), 0))
    x = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 1), dtype=np.uint8)
    whole = network(x)
    assert whole.probabilities is not None
    for count in (1, 64, 65, 130):
        part = network(x[:count])
        assert torch.equal(part.vectors, whole.vectors[:count])
        assert part.probabilities is not None
        assert torch.equal(part.probabilities, whole.probabilities[:count])


def test_scaled_features_have_mean_0_and_variance_1_and_the_same_classes() -> None:
    network = init_weights(ClassifierNetwork((1, 8, 8), 3), 0)
    x = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    before = extractor(network)(x)
    scale_features(network, Moments.of(before.vectors))
    after = extractor(network)(x)
    assert before.probabilities is not None and after.probabilities is not None
    assert torch.equal(after.probabilities, before.probabilities)
    assert after.vectors.mean(dim=0).abs().max() < 1e-4
    assert (after.vectors.var(dim=0) - 1).abs().max() < 1e-4


def test_other_weights_are_other_features_by_name() -> None:
    network = ClassifierNetwork((1, 8, 8), 3)
    assert extractor(network).sha256 != ClassifierFeatures(network, "1" * 64, 0.9).sha256


def test_every_image_is_there_once_a_pass() -> None:
    places = classifier._places(torch.arange(5 * 37), 37)
    for start in range(0, 5 * 37, 37):
        assert sorted(places[start : start + 37].tolist()) == list(range(37))
    assert places[:37].tolist() != places[37:74].tolist()


@pytest.mark.slow
def test_it_learns_to_tell_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setattr(classifier, "CLASSIFIER_STEPS", 120)
    digits = load_digits()
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    network = train_classifier(lambda places: x[places], digits.target[:1500], (1, 8, 8), 10)
    told = extractor(network)(x[1500:]).probabilities
    assert told is not None
    assert (told.argmax(dim=1).numpy() == digits.target[1500:]).mean() > 0.9
