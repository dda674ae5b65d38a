"""The kernel distance: scikit-learn's kernel, no bias, sharper with more images."""

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from ddpm.metrics.distances import KernelReference
from ddpm.metrics.intervals import Interval


def kid(first: list[torch.Tensor], second: list[torch.Tensor]) -> Interval:
    return KernelReference(second).kid(first)


def draw(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 16, generator=random, dtype=torch.float64) + shift


def blocks(x: torch.Tensor, count: int = 16) -> list[torch.Tensor]:
    return [x[k::count] for k in range(count)]


def test_it_is_the_mean_over_all_pairs_of_different_groups() -> None:
    x, y = draw(80, 0), draw(112, 1, shift=0.5)
    group_x, group_y = torch.arange(80) % 16, torch.arange(112) % 16

    def mean(a: torch.Tensor, b: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> float:
        kernel = polynomial_kernel(a, b, degree=3, gamma=1 / 16, coef0=1)
        return kernel[(one[:, None] != two[None]).numpy()].mean()

    wanted = mean(x, x, group_x, group_x) + mean(y, y, group_y, group_y)
    wanted -= 2 * mean(x, y, group_x, group_y)
    assert kid(blocks(x), blocks(y)).value == pytest.approx(wanted, rel=1e-9)


@pytest.mark.slow
def test_it_has_no_bias_whatever_the_number_of_images() -> None:
    for n in (64, 256):
        values = [kid(blocks(draw(n, 2 * s)), blocks(draw(n, 2 * s + 1))).value for s in range(100)]
        assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


@pytest.mark.slow
def test_more_images_make_it_sharper_where_sets_are_alike() -> None:
    few, many = (
        np.std([kid(blocks(draw(n, 2 * s)), blocks(draw(n, 2 * s + 1))).value for s in range(60)])
        for n in (128, 512)
    )
    assert many < few / 3  # as 1 / n: all pairs count, not those of a few images alone


def test_small_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="a group has 3 vectors; KID needs 4"):
        kid(blocks(draw(60, 0)), blocks(draw(64, 1)))
