"""The sections of a report: costs and fronts, quality over steps, films, and the written files."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair
import numpy as np
import pytest
from pyarrow import parquet

from ddpm import report
from ddpm.cli.main import launch
from ddpm.config import X0_MEASURES
from ddpm.metrics import quality as quality_file
from ddpm.report.best_samples import spots_of
from ddpm.report.charts import chosen, learning_curve
from ddpm.report.costs import compute_seconds
from ddpm.report.effects import analyse
from ddpm.report.labels import aligned, axes_of, common_digits
from ddpm.report.page import _DEEP, _PALE, as_markdown, escaped, luminance, shade, table
from ddpm.report.sections import Chart, Table
from ddpm.report.verdict import sentences
from tests.support.known_sweeps import GRID_9, PRED_TYPE, SCHEDULER, TIMESTEPS
from tests.support.synthetic_sweep import STEPS, make_sweep

CSS = Path(report.__file__).with_name("templates").joinpath("report.css").read_text()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> report.ReportFiles:
    """The report of 9 cells with two seeds; look, do not change."""
    folder = make_sweep(tmp_path_factory.mktemp("pages"), GRID_9, (0, 1), rows=20, inline=3)
    return report.build(folder)


@pytest.fixture
def folder(made: report.ReportFiles, tmp_path: Path) -> Path:
    """The sweep folder of a copy of its own."""
    shutil.copytree(made.sweep.folder.parents[1], tmp_path / "out")
    return tmp_path / "out" / "sweeps" / "tiny"


def section(made: report.ReportFiles, anchor: str) -> str:
    text = made.html.read_text()
    start = text.index(f'<section id="{anchor}">')
    return text[start : text.index("</section>", start)]


@pytest.mark.slow
def test_the_known_best_cell_is_first(made: report.ReportFiles) -> None:
    assert made.ranking.standings[0].cell == {SCHEDULER: "cosine", PRED_TYPE: "velocity"}


@pytest.mark.slow
def test_gpu_time_is_the_trials_time_times_gpus(made: report.ReportFiles) -> None:
    trial = made.sweep.trials[0]
    assert compute_seconds(trial) == trial.summary["core_seconds"]
    on_gpus = replace(trial, provenance={"workers": 2, "gpus_per_worker": 4})
    assert compute_seconds(on_gpus) == 8 * trial.summary["seconds"]
    # Of the whole trial, with its evaluation and samples, not of the training alone.
    whole = {**trial.summary, "gpu_seconds": 5.0, "trial_seconds": 7.0, "trial_core_seconds": 9.0}
    assert compute_seconds(replace(on_gpus, summary=whole)) == 56.0
    assert compute_seconds(replace(trial, summary=whole | {"gpu_seconds": None})) == 9.0


@pytest.mark.slow
def test_the_cost_section_adds_up_and_counts_what_was_lost(folder: Path) -> None:
    ledger = sorted((folder / "ledger").glob("*.json"))[-1]
    outcome = json.loads(ledger.read_text())
    ledger.write_text(json.dumps(outcome | {"status": "failed", "reason": "loss is nan"}))
    made = report.build(folder)
    seconds = [compute_seconds(trial) or 0 for trial in made.sweep.trials]
    said = section(made, "cost")
    assert f"18 trainings took {sum(seconds) / 60:.0f} min of core time" in said
    assert f"{seconds[-1]:.0f} s of it went into trials that did not finish" in said
    assert said.count('class="chart"') == 1 and "from the cheapest" in said


@pytest.mark.slow
def test_quality_is_over_seeds_where_there_are_several(made: report.ReportFiles) -> None:
    spots = spots_of(made.sweep, axes_of(made.sweep))
    assert len(spots) == 9 * len(STEPS)
    for spot in spots:
        found = [
            point.fid.value
            for trial in made.sweep.trials
            if trial.cell == spot.cell and trial.quality
            for point in trial.quality.points
            if point.num_steps == spot.point.num_steps and point.fid
        ]
        one = spot.qualities["fid"]
        assert one.value == pytest.approx(np.mean(found))
        # Student's t of one degree of freedom: 12.706 standard errors
        assert one.high - one.value == pytest.approx(
            12.706 * np.std(found, ddof=1) / 2**0.5, rel=1e-3
        )


@pytest.mark.slow
def test_the_front_over_steps_names_the_best_cell_at_each_number_of_calls(
    made: report.ReportFiles,
) -> None:
    said = section(made, "samples-over-sampling-steps")
    rows = re.findall(r"<tr>(.*?)</tr>", said[: said.index("</table>")])[1:]
    assert re.findall(r'<tr><th scope="row">(.*?)</th>', said[: said.index("</table>")]) == [
        str(steps) for steps in STEPS
    ]
    spots = spots_of(made.sweep, axes_of(made.sweep))
    best = min((s for s in spots if s.point.num_steps == 5), key=lambda s: s.qualities["fid"].value)
    assert best.label in rows[0]


@pytest.mark.slow
def test_without_measured_samples_there_is_no_such_section(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {PRED_TYPE: ["noise", "image"]}, (0,), rows=5, has_quality=False)
    text = report.build(folder).html.read_text()
    assert "sampling steps" not in text and "samples-over-training" in text


@pytest.mark.slow
def test_samples_drawn_in_one_way_stand_in_the_ranking_alone(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {PRED_TYPE: ["noise", "image"]}, (0,), rows=5)
    for run in (tmp_path / "digits_8x8x1").iterdir():
        quality, pictures = quality_file.read_quality(run), quality_file.read_pictures(run)
        assert quality is not None and pictures is not None
        quality_file.store_quality(run, replace(quality, points=quality.points[:1]), pictures)
    made = report.build(folder)
    assert (
        made.ranking.of_samples and 'id="samples-over-sampling-steps"' not in made.html.read_text()
    )
    ranked = section(made, "ranking")
    assert "images a point, measured with" in ranked and "The numbers of 2 points" in ranked


@pytest.mark.slow
def test_damaged_quality_files_are_left_out(made: report.ReportFiles, tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {PRED_TYPE: ["noise", "image"]}, (0,), rows=5)
    runs = sorted((tmp_path / "digits_8x8x1").iterdir())
    (runs[0] / "sample_quality.npz").write_bytes(b"PK damaged")
    (runs[1] / "sample_quality.json").write_text('{"points": [{"fid"')
    (runs[1] / "inline_gen" / "step-00000050.png").write_bytes(b"no picture")
    (runs[1] / "samples.npz").write_bytes(b"PK")
    sweep = report.build(folder).sweep
    assert sweep.trials[0].quality is not None and sweep.trials[1].quality is None
    assert quality_file.read_pictures(runs[0]) is None


@pytest.mark.slow
def test_pictures_of_other_points_are_not_shown(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {PRED_TYPE: ["noise", "image"]}, (0,), rows=5)
    run = tmp_path / "digits_8x8x1" / "run_00000000"
    quality, pictures = quality_file.read_quality(run), quality_file.read_pictures(run)
    assert quality is not None and pictures is not None
    quality_file.store_quality(run, replace(quality, points=quality.points[:2]), pictures)
    said = section(report.build(folder), "samples-over-sampling-steps")
    film = said[said.index('<div class="film">') :]
    assert re.findall(r'<th scope="row">(.*?)</th>', film) == ["image"]
    assert film.count("<img ") == len(STEPS)


@pytest.mark.slow
def test_points_that_were_left_out_are_named_with_the_reason(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path, {PRED_TYPE: ["noise", "image"]}, (0,), rows=5, inline=0)
    path = tmp_path / "digits_8x8x1" / "run_00000000" / "sample_quality.json"
    left_out = [{"num_steps": 200, "eta": 0.5, "reason": "T is <only> 50"}]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"left_out": left_out}))
    text = report.build(folder).html.read_text()
    assert "Points left out: 1" in text and "200 steps, \u03b7=0.5: T is &lt;only&gt; 50" in text


def test_a_film_has_every_moment_of_every_cell(made: report.ReportFiles) -> None:
    for anchor, moments in (
        ("samples-over-training", ["66", "133", "200"]),
        ("samples-over-sampling-steps", [str(steps) for steps in STEPS]),
    ):
        film = section(made, anchor)
        film = film[film.index('<div class="film">') :]
        assert re.findall(r'<th scope="col">(.*?)</th>', film) == moments
        assert film.count("<tr><th") == 10 and film.count("<img ") == 9 * len(moments)


def test_curves_are_means_over_seeds_and_keep_the_ends(made: report.ReportFiles) -> None:
    trials = [t for t in made.sweep.trials if t.cell == made.sweep.trials[0].cell]
    rows = learning_curve(trials, "n_loss")
    losses = np.stack([trial.metrics["n_loss"] for trial in trials])
    assert len(trials) == 2 and np.allclose([row["mean"] for row in rows], losses.mean(axis=0))
    assert np.allclose([row["low"] for row in rows], losses.min(axis=0))
    assert np.allclose([row["high"] for row in rows], losses.max(axis=0))
    assert np.allclose([row["seconds"] for row in rows], 0.6 * np.arange(1, 21))
    assert np.allclose([row["compute"] for row in rows], 0.58 * np.arange(1, 21))


def chart_specs(made: report.ReportFiles) -> dict[str, dict[str, Any]]:
    blocks = [block for section in made.sections for block in section.blocks]
    return {block.name: dict(block.spec) for block in blocks if isinstance(block, Chart)}


@pytest.mark.slow
def test_charts_are_vega_lite_and_hold_every_number(made: report.ReportFiles) -> None:
    specs = chart_specs(made)
    assert len(specs) == 6
    for spec in specs.values():
        # of each, one row: altair checks every value that it is given
        few = {name: rows[:1] for name, rows in spec["datasets"].items()}
        altair.Chart.from_dict({**spec, "datasets": few})
    (rows,) = [
        rows
        for rows in specs["x0-error over log SNR"]["datasets"].values()
        if rows and "mse" in rows[0]
    ]
    for standing in made.ranking.standings:
        own = [row for row in rows if row["cell"] == standing.label]
        assert [row["level"] for row in own] == list(standing.levels)
        assert [row["mse"] for row in own] == standing.curve(standing.levels).tolist()


def test_series_look_different_without_colour_and_the_same_in_every_chart(
    made: report.ReportFiles,
) -> None:
    found = [json.dumps(spec) for spec in chart_specs(made).values()]
    scales = {
        text for one in found for text in re.findall(r'"shape": ({.*?"scale": {.*?}.*?})', one)
    }
    assert scales
    for text in scales:
        names, symbols = re.findall(r"\[(.*?)\]", text)[:2]
        assert names == '"noise", "image", "velocity"'
        assert len(set(symbols.split(", "))) == 3


def test_a_training_curve_is_over_steps_time_or_compute(made: report.ReportFiles) -> None:
    for name in ("measures on validation images over training", "training losses"):
        (axis,) = [one for one in chart_specs(made)[name]["params"] if one["name"] == "over"]
        assert axis["bind"]["options"] == ["optimizer steps", "wall time (s)", "core time (s)"]


@pytest.mark.slow
def test_the_charts_of_a_large_grid_hold_the_best_cells(tmp_path: Path) -> None:
    grid = {**GRID_9, TIMESTEPS: [50, 100, 250, 500, 1000]}
    folder = make_sweep(tmp_path, grid, (0,), rows=5, has_quality=False, inline=0)
    made = report.assess(folder)
    axes = axes_of(made.sweep)
    groups = chosen([t.cell for t in made.sweep.trials], axes.facets, axes, made.ranking)
    assert len(groups) == 12
    kept = [cell for group in groups.values() for cell in group]
    assert all(standing.cell in kept for standing in made.ranking.standings[:12])


def test_a_column_of_numbers_has_one_number_of_decimals() -> None:
    errors = [0.021, 0.0083, 0.011, 0.009]
    digits = common_digits(errors)
    assert [aligned(-1.5, error, digits) for error in errors][:2] == [
        ("\u22121.5000", "0.0210"), ("\u22121.5000", "0.0083"),
    ]  # fmt: skip
    assert common_digits([1.8, 0.00021]) is None
    assert aligned(1.0, 0.00000012, 3) == ("1.000000", "0.000000")  # its own digits, six at most


def colours(name: str) -> list[str]:
    (pair,) = re.findall(rf"--{name}: light-dark\((#\w+), (#\w+)\)", CSS)
    return list(pair)


def contrast(first: str, second: str) -> float:
    parts = [[int(one[k : k + 2], 16) for k in (1, 3, 5)] for one in (first, second)]
    dark, light = sorted(map(luminance, parts))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_curves_stand_out(theme: int) -> None:
    """WCAG 2.2, AA: 4.5 : 1 for text, 3 : 1 for what carries meaning in a drawing."""
    grounds = {name: colours(name)[theme] for name in ("paper", "card", "accent-soft", "warn-soft")}
    for text in ("ink", "soft", "accent"):
        for ground in grounds.values():
            assert contrast(colours(text)[theme], ground) >= 4.5, (text, ground)
    assert contrast(colours("warn")[theme], grounds["warn-soft"]) >= 4.5
    for curve in (*(f"s{k}" for k in range(8)), "ref"):
        assert contrast(colours(curve)[theme], grounds["paper"]) >= 3, curve


def test_heat_maps_can_be_read_at_every_shade() -> None:
    for share in np.linspace(0, 1, 101):
        ground, ink = re.findall(r"rgb\(([\d,]+)\);color:(#\w+)", shade(float(share)))[0]
        rgb = [int(part) for part in ground.split(",")]
        both = sorted((luminance(rgb), 1.0 if ink == "#fff" else 0.0))
        assert (both[1] + 0.05) / (both[0] + 0.05) >= 4.5
    shades = [
        luminance([a + (b - a) * s for a, b in zip(_PALE, _DEEP, strict=True)]) for s in (0, 1)
    ]
    assert shades[0] > shades[1]  # darker is better, in grey too


def test_report_md_has_the_answer_the_table_and_the_commands(made: report.ReportFiles) -> None:
    text = made.markdown.read_text()
    assert text.startswith("# Which cell of a large grid denoises best?\n")
    assert escaped(made.verdict.headline) in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows[:11]}) == 1  # aligned, to be read as plain text
    first = made.ranking.standings[0]
    assert rows[2].split("|")[2].strip() == first.label
    assert "python launch/sweep.py sweeps/tiny.yaml" in text
    assert re.search(r"git checkout \w{12} && ddpm train \S+ --new", text)
    for section in made.sections:
        assert f"\n## {section.title}\n" in text
    assert "Read with this in mind:\n" in text


@pytest.mark.slow
def test_report_md_says_what_the_factors_do(made: report.ReportFiles) -> None:
    text = made.markdown.read_text()
    for measure in made.ranking.measures:
        said = sentences(analyse(made.ranking, measure))
        assert len(said) >= 2 and any("velocity beats noise" in sentence for sentence in said)
        items = "\n\n".join(escaped(sentence) for sentence in said)
        assert f"\n\n{items}\n" in text[text.index("\n## Factors\n") :]
    one = replace(made.ranking, standings=made.ranking.standings[:1])
    assert "## Factors" not in as_markdown(replace(made, ranking=one))


def test_markdown_is_escaped() -> None:
    evil = "<b>*no*</b> `x` | y\nz"
    assert escaped(evil) == "\\<b\\>\\*no\\*\\</b\\> \\`x\\` | y z"
    shown = table(Table(head=("a",), rows=[(evil,)]))
    assert shown.count("\n") == 2 and "\\| y z" in shown


def test_parquet_and_csv_hold_the_same_and_everything(made: report.ReportFiles) -> None:
    results = parquet.read_table(made.csv.with_suffix(".parquet")).to_pylist()
    rows = list(csv.DictReader(made.csv.read_text().splitlines()))
    assert [row["trial"] for row in results] == [row["trial"] for row in rows]
    assert all(isinstance(row["trial"], str) and len(row["trial"]) == 8 for row in results)
    for measure in X0_MEASURES:
        assert [row[measure] for row in results] == [float(row[measure]) for row in rows]
    for path in made.tables[1:]:
        if path.suffix == ".csv":
            both = parquet.read_table(path.with_suffix(".parquet"))
            lines = list(csv.reader(path.read_text().splitlines()))
            assert lines[0] == both.column_names and len(lines) - 1 == both.num_rows
    folder = made.sweep.folder / "tables"
    x0 = parquet.read_table(folder / "x0_error.parquet").to_pydict()
    trial = made.sweep.trials[3]
    assert trial.error is not None
    got = [m for m, name in zip(x0["mse"], x0["trial"], strict=True) if name == trial.name]
    assert got == trial.error.curve()[0].tolist()
    assert parquet.read_table(folder / "metrics.parquet").num_rows == 18 * 20
    assert parquet.read_table(folder / "sampling.parquet").num_rows == 18 * len(STEPS)
    config = parquet.read_table(folder / "configuration.parquet").to_pydict()
    assert config[PRED_TYPE] == [trial.cell[PRED_TYPE] for trial in made.sweep.trials]


def beside(
    tmp_path: Path, grid: dict[str, list[object]], seeds: tuple[int, ...], **more: Any
) -> Path:
    """Another sweep, `other`."""
    more = {"rows": 5, "inline": 0, "has_references": True, **more}
    folder = make_sweep(tmp_path / "b", grid, seeds, **more)
    facts = json.loads((folder / "sweep.json").read_text()) | {"name": "other"}
    (folder / "sweep.json").write_text(json.dumps(facts))
    return folder.rename(folder.with_name("other"))


@pytest.mark.slow
def test_two_sweeps_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = {PRED_TYPE: ["noise", "image"]}
    one = make_sweep(tmp_path / "a", grid, (0, 1, 2), rows=5, inline=0, has_references=True)
    two = beside(tmp_path, {SCHEDULER: ["linear", "cosine"], PRED_TYPE: ["velocity"]}, (0, 1, 2))
    assert launch("report", [str(one), str(two)]) == 0
    out = one.parent / "tiny+other"
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out
    assert not (one / "report.html").exists() and not (two / "report.html").exists()
    text = (out / "report.md").read_text()
    assert "# tiny beside other" in text and "Seeds are missing" not in text
    made = report.assess(one, two)
    cells = [standing.cell for standing in made.ranking.standings]
    assert [(c["SWEEP"], c[SCHEDULER], c[PRED_TYPE]) for c in cells] == [
        ("other", "cosine", "velocity"),
        ("other", "linear", "velocity"),
        ("tiny", "cosine", "image"),
        ("tiny", "cosine", "noise"),
    ]
    # a seed is a block within one sweep, where alone each had one; no number is another's
    first, second, third, fourth = made.ranking.standings
    assert set(third.trials) == {0, 1, 2} and set(first.trials) == {10**6, 10**6 + 1, 10**6 + 2}
    gaps = [made.ranking.gap(b, a, "kid") for a, b in ((first, third), (second, fourth))]
    assert all(one.basis == "unpaired" and one.half_width < 1 for one in gaps)
    alone = {
        one.key: one.value("kid") for f in (one, two) for one in report.assess(f).ranking.standings
    }
    assert sorted(alone.values()) == sorted(one.value("kid") for one in made.ranking.standings)


@pytest.mark.slow
def test_sweeps_that_are_not_comparable_are_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {PRED_TYPE: ["noise", "image"]}
    one = make_sweep(tmp_path / "a", grid, (0, 1), rows=5, inline=0, has_references=True)
    other_data = beside(tmp_path / "2", grid, (0,))
    for path in other_data.parents[1].glob("digits_8x8x1/*/evaluation.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data_sha256": "1" * 64}))
    cases = {
        "differ in their headline": beside(tmp_path / "1", grid, (0,), has_quality=False),
        "2 different data sets": other_data,
        "several sweeps are called tiny": one,
        "is one run; give folders of grids": next((tmp_path / "a" / "digits_8x8x1").iterdir()),
    }
    for words, other in cases.items():
        assert launch("report", [str(one), str(other)]) == 2
        assert words in capsys.readouterr().err
    window = beside(tmp_path / "3", grid, (0,))
    facts = json.loads((window / "sweep.json").read_text()) | {"window": [-3, 3]}
    (window / "sweep.json").write_text(json.dumps(facts))
    assert launch("report", [str(one), str(window)]) == 2
    assert "window of log SNR, so they cannot be compared: tiny -4 to 4, other -3 to 3" in (
        capsys.readouterr().err
    )
    assert not (one.parent / "tiny+other").exists()
