"""The kernel distance: by hand, unbiased, and 0 within its interval on two halves of one set."""

import numpy as np
import pytest
import torch

from ddpm.kid import kid, mmd2


def draw(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 6, generator=random, dtype=torch.float64) / 2).exp() + shift


def blocks(x: torch.Tensor, count: int = 16) -> list[torch.Tensor]:
    return [x[k::count] for k in range(count)]


def test_the_unbiased_estimate_by_hand() -> None:
    x, y = draw(5, 0), draw(7, 1, shift=0.5)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 6 + 1) ** 3)

    own = np.mean([kernel(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    other = np.mean([kernel(y[i], y[j]) for i in range(7) for j in range(7) if i != j])
    cross = np.mean([kernel(x[i], y[j]) for i in range(5) for j in range(7)])
    assert mmd2(x, y) == pytest.approx(own + other - 2 * cross, rel=1e-12)


def test_scikit_learns_kernel_is_ours() -> None:
    from sklearn.metrics.pairwise import polynomial_kernel

    x, y = draw(40, 0), draw(50, 1)
    k = {
        name: polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1)
        for name, (a, b) in {"xx": (x, x), "yy": (y, y), "xy": (x, y)}.items()
    }
    own = sum(
        (k[name].sum() - np.trace(k[name])) / (len(k[name]) * (len(k[name]) - 1))
        for name in ("xx", "yy")
    )
    assert mmd2(x, y) == pytest.approx(own - 2 * k["xy"].mean(), rel=1e-6)


def test_it_has_no_bias_whatever_the_number_of_images() -> None:
    for n in (64, 256):
        values = [kid(blocks(draw(n, 2 * s)), blocks(draw(n, 2 * s + 1))).value for s in range(300)]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


def test_two_halves_of_one_set_are_at_zero_within_the_interval() -> None:
    hits = 0
    for seed in range(200):
        x = draw(1000, seed)
        hits += kid(blocks(x[:500]), blocks(x[500:])).covers(0.0)
    assert 0.91 <= hits / 200 <= 0.98


def test_the_interval_covers_the_truth_where_the_sets_differ() -> None:
    far = [kid(blocks(draw(640, 2 * s, 0.2)), blocks(draw(640, 2 * s + 1))) for s in range(200)]
    wanted = np.mean([estimate.value for estimate in far])
    assert 0.91 <= np.mean([estimate.covers(float(wanted)) for estimate in far]) <= 0.985


def test_the_order_of_the_images_does_not_matter_to_the_unbiased_estimate() -> None:
    x, y = draw(60, 0), draw(60, 1)
    assert mmd2(x.flip(0), y) == pytest.approx(mmd2(x, y), rel=1e-12)


def test_small_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="a block has 3 vectors; KID needs 4"):
        kid(blocks(draw(60, 0)), blocks(draw(64, 1)))
