"""The Frechet distance: closed forms, scipy's square root, its zero, no bias of few images."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from ddpm.metrics.distances import Frechet
from ddpm.metrics.features import Moments, merged
from ddpm.metrics.intervals import Interval


def draw(n: int, dimension: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    mix = torch.eye(dimension) + 0.3 * torch.randn(
        dimension, dimension, generator=torch.Generator().manual_seed(99)
    )
    return torch.randn(n, dimension, generator=random) @ mix * scale + shift


def fid(groups: list[Moments], reference: Moments) -> tuple[Interval, Interval]:
    return Frechet(reference).fid(groups)


def frechet_distance(first: Moments, second: Moments) -> float:
    return Frechet(second).distance(first)


def groups_of(x: torch.Tensor, count: int = 16) -> list[Moments]:
    return [Moments.of(x[k::count]) for k in range(count)]


def exact(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments that are exactly these."""
    count = 1000
    return Moments(
        count=count,
        mean=torch.tensor(mean, dtype=torch.float64),
        scatter=torch.tensor(covariance * (count - 1), dtype=torch.float64),
    )


@pytest.mark.parametrize("n", [1000, 20])  # 20: the covariance has no full rank
def test_the_distance_of_a_set_from_itself_is_zero(n: int) -> None:
    moments = Moments.of(draw(n, 48, seed=1))
    assert frechet_distance(moments, moments) <= 1e-6 * np.trace(moments.covariance)


def test_commuting_covariances_have_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    one, two = rng.uniform(0.1, 3, 9), rng.uniform(0.1, 3, 9)
    first, second = rng.normal(size=9), rng.normal(size=9)
    expected = np.square(first - second).sum() + np.square(np.sqrt(one) - np.sqrt(two)).sum()
    found = frechet_distance(
        exact(first, turn @ np.diag(one) @ turn.T), exact(second, turn @ np.diag(two) @ turn.T)
    )
    assert found == pytest.approx(expected, rel=1e-10)


def test_scipys_root_of_the_product_gives_the_same() -> None:
    one, two = Moments.of(draw(500, 20, seed=1)), Moments.of(draw(700, 20, seed=2, shift=0.2))
    root = np.real(sqrtm(one.covariance @ two.covariance))
    apart = (one.mean - two.mean).numpy()
    traces = np.trace(one.covariance) + np.trace(two.covariance)
    expected = apart @ apart + traces - 2 * np.trace(root)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(two, one) == pytest.approx(expected, rel=1e-6)


def truth(reference: Moments, dimension: int, shift: float, scale: float) -> float:
    """The distance of the distribution that draw() draws from."""
    mix = torch.eye(dimension) + 0.3 * torch.randn(
        dimension, dimension, generator=torch.Generator().manual_seed(99)
    )
    covariance = scale**2 * (mix.mT @ mix).double().numpy()
    return frechet_distance(exact(np.full(dimension, shift), covariance), reference)


def test_extrapolation_takes_out_the_bias_of_few_images() -> None:
    reference = Moments.of(draw(3000, 16, seed=0))
    wanted = truth(reference, 16, 0.1, 1.1)
    found = [fid(groups_of(draw(160, 16, seed, 0.1, 1.1)), reference) for seed in range(1, 21)]
    plain, infinite = (np.mean([pair[k].value for pair in found]) for k in (0, 1))
    assert plain > 1.5 * wanted
    assert abs(infinite - wanted) < 0.15 * (plain - wanted)


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_products_of_groups_say_what_the_distance_of_another_mixture_of_them_is(
    known: float,
) -> None:
    groups = groups_of(draw(64_000, 5, seed=1))
    whole = merged(groups)
    weights = torch.rand(16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights /= weights.sum()
    mean = sum(w * group.mean for w, group in zip(weights, groups, strict=True))
    apart = [group.mean - mean for group in groups]
    covariance = sum(
        w * (group.scatter / group.count + torch.outer(a, a))
        for w, group, a in zip(weights, groups, apart, strict=True)
    )
    products = Frechet(whole).products(whole, groups, known)
    expected = weights.numpy() @ products @ weights.numpy() - products.mean()
    found = frechet_distance(exact(mean.numpy(), covariance.numpy()), whole)
    assert found == pytest.approx(expected, rel=0.05)
