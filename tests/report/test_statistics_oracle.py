"""The analysis of variance against statsmodels, which `make test-oracle` installs."""

import numpy as np
import pytest

from ddpm.report.effects import Analysis, analyse
from tests.support.known_sweeps import FIRST, GRID_9, GRID_27, cells_of, known_ranking

pytestmark = pytest.mark.oracle


def rows_of(values: np.ndarray, grid: dict) -> dict[str, list]:
    """One entry a trial: the number, the seed, the level of each factor under a short name."""
    found: dict[str, list] = {"y": [], "seed": [], **{f"f{k}": [] for k in range(len(grid))}}
    for place, cell in enumerate(cells_of(grid)):
        for seed in np.nonzero(np.isfinite(values[place]))[0]:
            found["y"].append(values[place, seed])
            found["seed"].append(int(seed))
            for number, key in enumerate(grid):
                found[f"f{number}"].append(str(cell[key]))
    return found


def ours(values: np.ndarray, grid: dict) -> tuple[Analysis, dict[str, tuple[float, float]]]:
    """Sum of squares and degrees of freedom by statsmodels' name of a term."""
    found = analyse(known_ranking(values, cells_of(grid)), FIRST)
    names = {key: f"f{number}" for number, key in enumerate(grid)}
    named = {
        ":".join(sorted(f"C({names[key]})" for key in term.keys)): (term.squares, term.dof)
        for term in found.terms
    }
    return found, named


@pytest.mark.parametrize("missing", [0, 7])
@pytest.mark.parametrize("grid", [GRID_9, GRID_27], ids=["3 x 3", "3 x 3 x 3"])
def test_type_two_sums_are_statsmodels(grid: dict, missing: int) -> None:
    pytest.importorskip("statsmodels")
    from pandas import DataFrame
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    rng = np.random.default_rng(missing)
    values = rng.normal(size=(len(cells_of(grid)), 3)) + rng.normal(size=3)
    places = rng.permutation(values[:, 1:].size)[:missing]
    values[:, 1:].flat[places] = np.nan  # every cell keeps its first seed
    terms = " * ".join(f"C(f{number})" for number in range(len(grid)))
    table = anova_lm(ols(f"y ~ C(seed) + {terms}", DataFrame(rows_of(values, grid))).fit(), typ=2)
    found, named = ours(values, grid)
    for name, row in table.iterrows():
        key = ":".join(sorted(str(name).split(":")))
        if key == "Residual":
            assert found.error is not None and found.error.squares == pytest.approx(row["sum_sq"])
        elif key == "C(seed)":
            assert found.seeds is not None and found.seeds.squares == pytest.approx(row["sum_sq"])
        else:
            assert named[key] == pytest.approx((row["sum_sq"], row["df"])), key


@pytest.mark.parametrize("grid", [GRID_9, GRID_27], ids=["3 x 3", "3 x 3 x 3"])
def test_tests_over_seeds_are_those_of_repeated_measures(grid: dict) -> None:
    pytest.importorskip("statsmodels")
    from pandas import DataFrame
    from statsmodels.stats.anova import AnovaRM

    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(cells_of(grid)), 4)) + rng.normal(size=4)
    within = [f"f{number}" for number in range(len(grid))]
    table = AnovaRM(DataFrame(rows_of(values, grid)), "y", "seed", within=within).fit().anova_table
    found, _ = ours(values, grid)
    names = {key: f"f{number}" for number, key in enumerate(grid)}
    for term in found.terms:
        row = table.loc[":".join(names[key] for key in term.keys)]
        assert term.f == pytest.approx(row["F Value"])
        assert (term.dof, term.over) == (row["Num DF"], row["Den DF"])
        assert term.p == pytest.approx(row["Pr > F"], rel=1e-6)
