"""The sections of the page on differences and factors say what the statistics say."""

import re
from dataclasses import replace

import numpy as np

from ddpm.report.effects import gap, with_baseline
from ddpm.report.page import differences_section, factors
from ddpm.report.ranking import Ranking, number_with_error
from tests.support.known_sweeps import FIRST, GRID_9, SCHEDULER, cells_of, known_ranking


def ranking_of(seeds: int = 3) -> Ranking:
    rng = np.random.default_rng(0)
    values = 0.01 * rng.normal(size=(9, seeds)) + 0.02 * rng.normal(size=seeds)
    values[2::3] += 0.5
    return known_ranking(values, cells_of(GRID_9))


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_every_cell_stands_with_its_interval_and_outcome() -> None:
    ranking = ranking_of()
    text = plain(differences_section(ranking))
    assert "paired differences vary 0." in text and "For the SNR-weighted error it is 0." in text
    for standing in ranking.standings[1:]:
        found = gap(ranking, standing, ranking.standings[0], FIRST)
        value, width = number_with_error(found.mean, found.half_width)
        assert f"{standing.label} {value} \u00b1 {width}" in text
    assert text.count("higher by both") == 3 and "\u00d73." in text
    assert "(Dunnett)" not in text


def test_the_baseline_has_a_table_of_its_own() -> None:
    html = differences_section(with_baseline(ranking_of(), "SCHEDULER=linear,PRED_TYPE=image"))
    assert html.count("<table") == 2 and "(Dunnett)" in html


def test_factors_have_sentences_table_and_effects_by_both_measures() -> None:
    html = factors(ranking_of())
    text = plain(html)
    assert html.count("<table") == 4 and "log10 of SNR-weighted error" in text
    assert "schedule \u00d7 prediction type" in text and "error: seeds \u00d7 cells" in text
    assert "beats velocity by 0." in text or "beats noise by 0." in text or "beats image" in text


def test_one_seed_is_called_evaluation_error() -> None:
    text = plain(differences_section(ranking_of(1)))
    assert "One seed: \u00b1 is evaluation error" in text and "paired / unpaired" not in text


def test_one_cell_has_neither_section() -> None:
    ranking = ranking_of()
    alone = replace(ranking, standings=ranking.standings[:1])
    assert differences_section(alone) == "" and factors(alone) == ""


def test_many_cells_are_folded_and_texts_escaped() -> None:
    cells = [{SCHEDULER: f"<b>{number}"} for number in range(70)]
    rng = np.random.default_rng(1)
    html = differences_section(known_ranking(rng.normal(size=(70, 2)), cells))
    assert "9 more cells" in html and "<b>" not in html
