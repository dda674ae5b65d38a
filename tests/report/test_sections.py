"""The sections on differences and factors say what the statistics say."""

from dataclasses import replace

import altair
import numpy as np
import pytest

from ddpm.report import charts
from ddpm.report.labels import axes_of, number_with_error
from ddpm.report.page import section_text
from ddpm.report.ranking import Ranking, with_baseline
from ddpm.report.sections import Section, Table, compared, factors
from tests.support.known_sweeps import (
    FIRST,
    GRID_9,
    PRED_TYPE,
    cells_of,
    known_ranking,
    sweep_of,
)


def ranking_of(seeds: int = 3) -> Ranking:
    rng = np.random.default_rng(0)
    values = 0.01 * rng.normal(size=(9, seeds)) + 0.02 * rng.normal(size=seeds)
    values[2::3] += 0.5
    return known_ranking(values, cells_of(GRID_9))


def blocks(make, ranking: Ranking) -> list:  # type: ignore[no-untyped-def]
    sweep = sweep_of([trial for one in ranking.standings for trial in one.trials.values()])
    return list(make(sweep, ranking, axes_of(sweep)))


def words(make, ranking: Ranking) -> str:  # type: ignore[no-untyped-def]
    """The section as Markdown, its columns one space apart."""
    text = section_text(Section(title="", blocks=blocks(make, ranking)))
    return " ".join(text.replace("|", " ").split())


def test_every_cell_stands_with_its_interval_and_outcome() -> None:
    ranking = ranking_of()
    text = words(compared, ranking)
    assert "paired differences vary 0." in text and "SNR-weighted error: 0." in text
    assert ranking.recommended is not None
    others = [one for one in ranking.standings if one is not ranking.recommended]
    for standing in others:
        found = ranking.gap(standing, ranking.recommended, FIRST)
        value, width = number_with_error(found.mean, found.half_width)
        assert f"{standing.label} {value} \u00b1 {width}" in text
    assert text.count(" worse") == 3 and "\u00d73." in text
    assert "(Dunnett)" not in text


def test_the_baseline_has_a_table_of_its_own() -> None:
    named = with_baseline(ranking_of(), "SCHEDULER=linear,PRED_TYPE=image")
    tables = [block for block in blocks(compared, named) if isinstance(block, Table)]
    assert len(tables) == 2 and "(Dunnett)" in tables[1].caption


def test_factors_have_sentences_table_and_effects_by_both_measures() -> None:
    found, text = blocks(factors, ranking_of()), words(factors, ranking_of())
    assert sum(isinstance(block, Table) for block in found) == 4
    assert "Log10 of SNR-weighted error" in text
    assert "schedule \u00d7 prediction type" in text and "error: seeds \u00d7 cells" in text
    assert "beats velocity by 0." in text or "beats noise by 0." in text or "beats image" in text


def test_one_seed_is_called_evaluation_error() -> None:
    text = words(compared, ranking_of(1))
    assert "One seed: \u00b1 is evaluation error" in text and "paired / unpaired" not in text


def test_one_cell_has_neither_section() -> None:
    ranking = ranking_of()
    alone = replace(ranking, standings=ranking.standings[:1])
    assert blocks(compared, alone) == blocks(factors, alone) == []


@pytest.mark.slow
def test_where_the_loss_looked_is_drawn_where_cells_differ_in_it() -> None:
    ranking = ranking_of()
    assert ranking.levels == (-1, 0, 1)
    by_type = {"noise": 0.5, "image": 1.0, "velocity": 2.0}
    weights = {
        one.key: {level: 3 * by_type[str(one.cell[PRED_TYPE])] ** level for level in range(-3, 3)}
        for one in ranking.standings
    }
    sweep = sweep_of([trial for one in ranking.standings for trial in one.trials.values()])
    assert charts.weight_curves(sweep, ranking, axes_of(sweep)) is None  # of an earlier version
    alike = replace(sweep, weights=dict.fromkeys(weights, {0: 1.0, 1: 2.0}))
    assert charts.weight_curves(alike, ranking, axes_of(sweep)) is None
    spec = charts.weight_curves(replace(sweep, weights=weights), ranking, axes_of(sweep))
    assert spec is not None
    altair.Chart.from_dict(spec)
    rows = spec["datasets"]["weights"]
    for name, ratio in by_type.items():
        curve = {row["level"]: row["weight"] for row in rows if row["series"] == name}
        assert sum(curve[level] for level in ranking.levels) == pytest.approx(1)
        assert curve[1] / curve[0] == pytest.approx(ratio) and set(curve) == set(range(-3, 3))
    assert spec["datasets"]["outside of weights"] == [{"from": -3, "to": -1}, {"from": 1, "to": 2}]
