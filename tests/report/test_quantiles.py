"""Quantiles of many comparisons: against scipy, published tables, and the single one they hold."""

import numpy as np
import pytest
from scipy import special, stats

from ddpm.metrics.intervals import t_quantile
from ddpm.report.scatter import dunnett_quantile, f_survival, rounded, tukey_quantile

EQUAL = 0.5**0.5  # the load of comparisons between means of equally many values


@pytest.mark.parametrize("means", [2, 3, 9, 27])
@pytest.mark.parametrize("dof", [2, 4, 16, 52])
def test_the_studentized_range_is_scipys(means: int, dof: int) -> None:
    for confidence in (0.8, 0.95, 1 - 0.05 / 9):
        width = tukey_quantile(confidence, means, dof)
        said = stats.studentized_range.cdf(np.sqrt(2) * width, means, dof)
        assert 1 - said == pytest.approx(1 - confidence, rel=2e-3)


# Two-sided, 5 %, for 2, 3, 4 and 5 treatments and a control (Dunnett 1964).
@pytest.mark.parametrize(
    ("dof", "table"),
    [
        (10, (2.57, 2.76, 2.89, 2.99)),
        (20, (2.38, 2.54, 2.65, 2.73)),
        (60, (2.27, 2.41, 2.51, 2.58)),
    ],
)
def test_dunnetts_quantiles_are_those_of_his_tables(dof: int, table: tuple[float, ...]) -> None:
    for comparisons, expected in zip((2, 3, 4, 5), table, strict=True):
        assert dunnett_quantile(0.95, (EQUAL,) * comparisons, dof) == pytest.approx(
            expected, abs=0.0101
        )


def test_one_comparison_is_students() -> None:
    for dof in (1, 3, 8, 30):
        expected = t_quantile(0.95, dof)
        assert tukey_quantile(0.95, 2, dof) == pytest.approx(expected, rel=1e-4)
        assert dunnett_quantile(0.95, (0.3,), dof) == pytest.approx(expected, rel=1e-4)


def test_without_correlations_and_with_endless_dof_it_is_sidaks() -> None:
    expected = special.ndtri((1 + 0.95 ** (1 / 8)) / 2)
    assert dunnett_quantile(0.95, (0.0,) * 8, np.inf) == pytest.approx(expected, rel=1e-6)
    correlated = dunnett_quantile(0.95, (EQUAL,) * 8, np.inf)
    assert correlated < expected < tukey_quantile(0.95, 9, np.inf)


def test_unequal_loads_hold_together_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    loads = np.array([0.3, 0.6, 0.9])
    common = rng.normal(size=(100_000, 1))
    z = loads * common + np.sqrt(1 - loads**2) * rng.normal(size=(100_000, 3))
    spread = np.sqrt(rng.chisquare(7, size=100_000) / 7)
    width = dunnett_quantile(0.95, tuple(loads), 7)
    assert np.mean(np.abs(z).max(axis=1) < width * spread) == pytest.approx(0.95, abs=0.003)


def test_fishers_probability_is_scipys() -> None:
    assert f_survival(3.4, 2, 16) == pytest.approx(stats.f.sf(3.4, 2, 16), rel=1e-12)


def test_fewer_degrees_of_freedom_are_never_rounded_up() -> None:
    for dof in (0.6, 1.0, 2.74, 19.99, 20.2, 87.9):
        assert rounded(dof) <= dof < rounded(dof) + 1
    assert rounded(0.2) == 0.5


@pytest.mark.parametrize(("confidence", "means", "dof"), [(1.0, 3, 4), (0.95, 1, 4), (0.95, 3, 0)])
def test_impossible_quantiles_are_refused(confidence: float, means: int, dof: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        tukey_quantile(confidence, means, dof)
