"""Features, moments and groups: the same bits in any batch, as exact as all at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ddpm.errors import NonFiniteError
from ddpm.metrics.features import (
    GROUPS,
    Moments,
    PixelFeatures,
    collect_features,
    exact_arithmetic,
    flat_pixels,
    merged,
    principal_components,
    random_groups,
)
from tests.support import moments_process, processes
from tests.support.moments_process import Known, images_of
from tests.support.processes import exit_codes, forked


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


def vectors(count: int, dimension: int = 7, seed: int = 0) -> torch.Tensor:
    """Far from zero, where naive sums of squares lose digits."""
    random = torch.Generator().manual_seed(seed)
    return 1000 + torch.randn(count, dimension, generator=random, dtype=torch.float64)


def close(one: Moments, two: Moments) -> bool:
    """Equal to 1e-9 relative."""
    return (
        one.count == two.count
        and torch.allclose(one.mean, two.mean, rtol=1e-9, atol=0)
        and bool((one.scatter - two.scatter).abs().max() <= 1e-9 * two.scatter.abs().max())
    )


def test_moments_are_numpys() -> None:
    x = vectors(300)
    moments = Moments.of(x)
    assert np.allclose(moments.mean, x.numpy().mean(axis=0), rtol=1e-13)
    expected = np.cov(x.numpy(), rowvar=False)
    assert np.abs(moments.covariance - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("sizes", [(300,), (1, 299), (100, 0, 150, 50), (1,) * 300])
def test_parts_merge_to_the_whole_in_any_order(sizes: tuple[int, ...]) -> None:
    x = vectors(300)
    parts = [Moments.of(part) if len(part) else Moments.empty(7) for part in x.split(list(sizes))]
    streamed = Moments.empty(7)
    for part in x.split(list(sizes)):
        streamed.add(part)
    assert close(streamed, Moments.of(x))
    assert close(merged(parts), Moments.of(x))
    assert close(merged(parts[::-1]), Moments.of(x))


def test_what_was_merged_can_be_left_out_again() -> None:
    x = vectors(400)
    whole, part = Moments.of(x), Moments.of(x[100:150])
    assert close(whole.without(part), Moments.of(torch.cat([x[:100], x[150:]])))


def test_merging_leaves_the_parts_as_they_were() -> None:
    parts = [Moments.of(vectors(50, seed=seed)) for seed in range(3)]
    before = [part.mean.clone() for part in parts]
    merged(parts)
    assert all(torch.equal(part.mean, mean) for part, mean in zip(parts, before, strict=True))


def test_one_vector_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="needs two vectors"):
        _ = Moments.of(vectors(1)).covariance


def reduced(workers: int, path: Path) -> dict[str, np.ndarray]:
    """Arrays of rank 0 of so many processes after the reduction."""
    environments = processes.workers(workers)
    started = [forked(moments_process.main, 1003, 24, path, env=env) for env in environments]
    assert exit_codes(started) == [0] * workers
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.slow
def test_one_and_four_workers_have_the_same_sums_and_numbers(tmp_path: Path) -> None:
    alone = reduced(1, tmp_path / "1.npz")
    assert alone["counts"].sum() == 1003
    together = reduced(4, tmp_path / "4.npz")
    assert (together["counts"] == alone["counts"]).all()
    assert together["hits"] == alone["hits"]
    assert together.keys() == alone.keys()
    for key in alone:
        apart = np.abs(together[key] - alone[key]).max()
        assert apart <= 1e-9 * np.abs(alone[key]).max(), key


def test_groups_are_of_one_size_and_the_same_every_time() -> None:
    dealt = random_groups(1003)
    assert set(np.bincount(dealt)) <= {1003 // GROUPS, 1003 // GROUPS + 1}
    assert (dealt == random_groups(1003)).all()


def test_sorted_images_are_spread_over_all_groups() -> None:
    labels = np.sort(np.arange(3200) % 10)
    table = np.zeros((GROUPS, 10))
    np.add.at(table, (random_groups(3200), labels), 1)
    assert table.min() >= 5  # of 20 expected


def test_classes_dealt_in_turn_are_in_every_group_alike() -> None:
    labels = np.arange(1600) % 10
    table = np.zeros((GROUPS, 10))
    np.add.at(table, (random_groups(1600, labels), labels), 1)
    assert (table == 10).all()


def test_features_are_kept_of_so_many_and_no_more_and_moments_of_all() -> None:
    x, dealt = images_of(500, 6), random_groups(500)
    few = collect_features(Known(6), [x[:200], x[200:]], dealt, kept=50)
    everything = collect_features(Known(6), [x], dealt)
    assert few.kept.shape == (50, 6) and few.count == everything.count == 500
    assert everything.kept.shape == (500, 6)
    assert torch.allclose(few.whole().scatter, everything.whole().scatter, rtol=1e-9)
    assert [len(block) for block in everything.blocks()] == np.bincount(dealt).tolist()


def test_hits_are_the_images_told_as_their_class() -> None:
    x = images_of(300, 6)
    told = (x[:, 0, 0, 0] >= 128).astype(np.int64)
    labels = told.copy()
    labels[:30] = 1 - labels[:30]
    judged = collect_features(Known(6), [x], random_groups(300), labels=labels).judged
    assert judged is not None and judged.hits == 270
    assert judged.counts.sum() == 300
