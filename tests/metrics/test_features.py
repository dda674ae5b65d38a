"""Extractors: the features of an image do not depend on the others, and `pixels` are components."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ddpm.errors import NonFiniteError
from ddpm.metrics.features import PixelFeatures, exact_arithmetic, flat_pixels, principal_components


def images(count: int, side: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(count, 3)) @ rng.normal(size=(3, side * side))
    values = 128 + 25 * smooth + 8 * rng.normal(size=(count, side * side))
    return np.clip(values, 0, 255).astype(np.uint8).reshape(count, side, side, 1)


def fitted(x: np.ndarray) -> PixelFeatures:
    found = principal_components([x[:70], x[70:]])
    return PixelFeatures(found["mean"], found["components"], "0" * 64)


def test_they_are_scikit_learns_components_scaled_by_one_number() -> None:
    x = images(400)
    found = fitted(x)(x).vectors.numpy()
    wanted = PCA(n_components=32).fit_transform(x.reshape(400, -1) / 255)
    scale = np.sqrt((found**2).sum() / (wanted**2).sum())
    assert np.abs(np.abs(found) - scale * np.abs(wanted)).max() < 1e-4
    assert found.var(axis=0, ddof=1).mean() == pytest.approx(1.0, abs=1e-5)


def test_the_sign_of_a_component_is_settled() -> None:
    components = principal_components([images(300)])["components"].numpy()
    largest = np.abs(components).argmax(axis=0)
    assert (components[largest, np.arange(components.shape[1])] > 0).all()


def test_features_do_not_depend_on_how_many_images_there_are() -> None:
    extractor, x = fitted(images(200)), images(150, seed=1)
    whole = extractor(x).vectors
    for count in (1, 3, 63, 64, 65, 129):
        assert torch.equal(extractor(x[:count]).vectors, whole[:count])


def test_large_images_are_averaged_before_the_components() -> None:
    x = np.repeat(np.repeat(images(2, side=16), 4, axis=1), 4, axis=2)  # 64 x 64
    assert flat_pixels(torch.from_numpy(x)).shape == (2, 32 * 32)
    small = np.repeat(np.repeat(images(2, side=16), 2, axis=1), 2, axis=2)
    assert torch.equal(flat_pixels(torch.from_numpy(x)), flat_pixels(torch.from_numpy(small)))


@pytest.mark.parametrize("wrong", [images(3).astype(np.float32), images(3)[0], images(3)[:0]])
def test_what_are_no_images_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="features are of uint8"):
        fitted(images(200))(wrong)


def test_features_that_are_not_finite_stop_it() -> None:
    found = principal_components([images(200)])
    found["components"][0, 0] = float("nan")
    extractor = PixelFeatures(found["mean"], found["components"], "0" * 64)
    with pytest.raises(NonFiniteError, match="pixels features of images 0 to 63 are not finite"):
        extractor(images(100))


def test_tf32_is_off_inside_and_all_is_as_before_afterwards() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.set_num_threads(2)
    with exact_arithmetic(threads=1):
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        assert torch.get_num_threads() == 1
    assert torch.backends.cuda.matmul.allow_tf32 and torch.get_num_threads() == 2
    torch.backends.cuda.matmul.allow_tf32 = False
