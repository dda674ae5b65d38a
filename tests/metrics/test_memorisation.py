"""Copies of training images are caught; fresh images are not accused."""

import numpy as np
import torch

from ddpm.metrics.manifold import copies, nearer, nearest_distances

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
    assert nearer(clean, own).covers(0.5) and copies(clean, own).covers(0.01)
    assert copies(half, own).value >= 0.5 and nearer(half, own).low > 0.6
    assert copies(whole, own).value == nearer(whole, own).value == 1.0


def test_fresh_images_are_at_one_half_as_often_as_the_interval_says() -> None:
    rng = np.random.default_rng(3)
    hits = [nearer(rng.gamma(3, 1, 200), rng.gamma(3, 1, 150)).covers(0.5) for _ in range(500)]
    assert 0.92 <= np.mean(hits) <= 0.98


def test_the_share_of_copies_knows_how_few_held_out_images_it_is_measured_by() -> None:
    rng = np.random.default_rng(4)
    # alike, so 1 % of the samples are below the true bound; a share alone would hold it in half
    hits = [copies(rng.gamma(3, 1, 2000), rng.gamma(3, 1, 300)).covers(0.01) for _ in range(300)]
    assert 0.91 <= np.mean(hits) <= 0.99
