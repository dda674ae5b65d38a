"""Precision, recall, density and coverage where they are known; copies are caught."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from ddpm.metrics.intervals import order
from ddpm.metrics.manifold import Manifold, copies, measure_manifold, nearest_distances


def draw(n: int, seed: int, dimension: int = 3) -> torch.Tensor:
    return torch.randn(n, dimension, generator=torch.Generator().manual_seed(seed))


def measured(samples: torch.Tensor, reference: torch.Tensor) -> Manifold:
    return measure_manifold(samples, torch.arange(len(samples)) % 16, reference)


def test_the_same_set_has_all_of_it() -> None:
    x = draw(400, 0)
    found = measured(x, x)
    assert found.precision.value == found.recall.value == found.coverage.value == 1.0
    # each vector lies in its own ball and in about five others
    assert 1.0 <= found.density.value <= 1.4


def test_sets_far_apart_have_nothing_in_common() -> None:
    found = measured(draw(300, 0) + 100, draw(300, 1))
    assert found.precision.value == found.recall.value == 0.0
    assert found.density.value == found.coverage.value == 0.0


def test_a_mode_that_is_missing_costs_recall_and_coverage_alone() -> None:
    far = torch.tensor([100.0, 0.0, 0.0])
    reference = torch.cat([draw(300, 0), draw(300, 1) + far])
    found = measured(draw(400, 2), reference)
    assert found.precision.value > 0.9
    assert found.recall.value == pytest.approx(0.5, abs=0.05)
    assert found.coverage.value == pytest.approx(0.5, abs=0.05)


def test_an_invented_mode_costs_precision_alone() -> None:
    samples = torch.cat([draw(200, 0), draw(200, 1) + 100])
    found = measured(samples, draw(300, 2))
    assert found.precision.value == pytest.approx(0.5, abs=0.05)
    assert found.recall.value > 0.9


def test_the_balls_are_those_of_scikit_learn() -> None:
    x, y = draw(150, 0).double(), draw(170, 1).double() + 0.5

    def radii(z: torch.Tensor, k: int) -> np.ndarray:
        return NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)[0][:, -1]

    apart = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    found = measured(x, y)
    assert found.precision.value == pytest.approx((apart <= radii(y, 3)).any(axis=1).mean())
    assert found.recall.value == pytest.approx((apart <= radii(x, 3)[:, None]).any(axis=0).mean())
    balls = apart <= radii(y, 5)
    assert found.density.value == pytest.approx(balls.sum(axis=1).mean() / 5)
    assert found.coverage.value == pytest.approx(balls.any(axis=0).mean())


def test_a_copy_on_the_edge_of_a_ball_is_inside_whatever_rounding_makes_of_it() -> None:
    """The copy of a 5th neighbour lies exactly there; matrix products round by place."""
    y = draw(301, 0, dimension=500).double()
    x = torch.cat([draw(7, 1, dimension=500).double(), y[:150]])
    apart, own = (
        torch.cdist(z, y, compute_mode="donot_use_mm_for_euclid_dist").numpy() for z in (x, y)
    )
    balls = apart <= np.sort(own, axis=1)[:, 5]  # 0 is the distance from itself
    assert measured(x, y).density.value == pytest.approx(balls.sum(axis=1).mean() / 5, rel=1e-12)


@pytest.mark.slow
def test_intervals_cover_the_mean_of_many_samples_of_the_same_size() -> None:
    reference = draw(500, 0)
    found = [measured(1.1 * draw(320, seed) + 0.2, reference) for seed in range(1, 201)]
    for name in ("precision", "density", "coverage"):
        estimates = [getattr(one, name) for one in found]
        wanted = float(np.mean([estimate.value for estimate in estimates]))
        share = np.mean([estimate.covers(wanted) for estimate in estimates])
        assert 0.90 <= share <= 0.995, (name, share)


@pytest.mark.slow
def test_the_interval_of_recall_covers_the_share_of_all_real_images() -> None:
    samples, everyone = draw(300, 0), 1.2 * draw(20_000, 1)
    wanted = measured(samples, everyone[:6000]).recall.value
    found = [measured(samples, part).recall.covers(wanted) for part in everyone[6000:].split(140)]
    assert 0.88 <= np.mean(found) <= 1.0


CPU = torch.device("cpu")


def images(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 2), dtype=np.uint8)


def batches(x: np.ndarray) -> list[np.ndarray]:
    return [x[start : start + 70] for start in range(0, len(x), 70)]


def test_distances_are_exact_and_a_copy_is_at_zero() -> None:
    training, fresh = images(300, 0), images(40, 1)
    found = nearest_distances(np.concatenate([fresh, training[100:110]]), batches(training), CPU)
    apart = fresh[:, None].astype(float) - training[None]
    wanted = np.sqrt(np.square(apart).mean(axis=(2, 3, 4))).min(axis=1)
    assert np.allclose(found[:40], wanted, rtol=1e-12)
    assert (found[40:] == 0).all()


def test_copies_are_caught_and_fresh_images_are_not() -> None:
    training, held_out, fresh = images(500, 0), images(200, 1), images(200, 2)
    copied = np.concatenate([fresh[:100], training[:100]])
    close = np.clip(training[:200].astype(int) + 1, 0, 255).astype(np.uint8)
    own, clean, half, whole = (
        nearest_distances(x, batches(training), CPU) for x in (held_out, fresh, copied, close)
    )
    assert order(clean, own).covers(0.5) and copies(clean, own).covers(0.01)
    assert copies(half, own).value >= 0.5 and order(half, own).low > 0.6
    assert copies(whole, own).value == order(whole, own).value == 1.0


def test_fresh_images_are_at_one_half_as_often_as_the_interval_says() -> None:
    rng = np.random.default_rng(3)
    hits = [order(rng.gamma(3, 1, 200), rng.gamma(3, 1, 150)).covers(0.5) for _ in range(500)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_the_share_of_copies_knows_how_few_held_out_images_it_is_measured_by() -> None:
    rng = np.random.default_rng(4)
    # alike, so 1 % of the samples are below the true bound; a share alone would hold it in half
    hits = [copies(rng.gamma(3, 1, 2000), rng.gamma(3, 1, 300)).covers(0.01) for _ in range(300)]
    assert 0.91 <= np.mean(hits) <= 0.99
