"""The report says what the files say, escapes what it shows and never guesses what is missing."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from html import escape, unescape
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ddpm import config, report
from ddpm.cli.report import main
from ddpm.config import X0_MEASURES
from ddpm.errors import InputError
from ddpm.metrics.x0_error import X0Error, x0_summary
from ddpm.report import reading
from ddpm.report.charts import vega
from ddpm.report.page import as_html
from ddpm.report.tables import csv_text
from tests.support.known_sweeps import GRID_9, PRED_TYPE, SCHEDULER
from tests.support.synthetic_sweep import make_sweep


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT_DIR with a sweep of nine trainings that learned nothing. Copy it to change it."""
    output_dir = tmp_path_factory.mktemp("report")
    plain = {"inline": 0, "has_quality": False, "has_bits": False}
    make_sweep(output_dir, GRID_9, (0,), rows=12, factor=4.0, has_references=True, **plain)  # type: ignore[arg-type]
    return output_dir


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """The sweep folder of a copy of its own."""
    shutil.copytree(trained, tmp_path / "out")
    return tmp_path / "out" / "sweeps" / "tiny"


@pytest.fixture(scope="module")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> report.ReportFiles:
    """The report of the sweep as it is; look, do not change."""
    copy = shutil.copytree(trained, tmp_path_factory.mktemp("made") / "out")
    return report.build(copy / "sweeps" / "tiny")


def change(path: Path, **facts: object) -> None:
    """Replaces facts of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def outcome(folder: Path, number: int) -> Path:
    return folder / "ledger" / f"{number:08x}.json"


def run_dir(folder: Path, number: int) -> Path:
    return folder.parents[1] / "digits_8x8x1" / f"run_{number:08x}"


def html(folder: Path) -> str:
    return report.build(folder).html.read_text()


@pytest.mark.slow
def test_the_numbers_are_those_of_the_evaluation_files(made: report.ReportFiles) -> None:
    errors = {}
    for number in range(9):
        with np.load(run_dir(made.sweep.folder, number) / "evaluation.npz") as saved:
            errors[f"{number:08x}"] = X0Error(**{name: saved[name] for name in saved.files})
    ranking = made.ranking
    levels = ranking.levels
    assert ranking.is_window and set(levels) == set(range(-4, 5))
    assert len(ranking.standings) == 9 and not ranking.excluded
    for standing in ranking.standings:
        trial = standing.trials[0]
        found = x0_summary(errors[trial.name], levels)
        for measure in X0_MEASURES:
            one = standing.numbers[measure][0]
            assert (one.value, one.error) == found[measure]
    for measure in X0_MEASURES:
        ordered = [ranking.standings[place].value(measure) for place in ranking.orders[measure]]
        assert ordered == sorted(ordered)


@pytest.mark.slow
def test_the_first_screen_has_question_answer_and_next_command(made: report.ReportFiles) -> None:
    text = made.html.read_text()
    screen = text[: text.index("<h2>")]
    assert "Which cell of a large grid denoises best?" in screen
    assert made.verdict.headline in unescape(screen)
    assert "9 of 9 trials finished" in screen
    assert "One training seed" in screen and "claims nothing about the cells beyond" in screen
    # nothing was learned, so that is what to do first
    assert f"{made.sweep.command} TRAINING.HYPER_PARAMETERS.EPOCHS=10" in screen


@pytest.mark.slow
def test_best_yaml_is_the_recommended_configuration(made: report.ReportFiles) -> None:
    assert made.best == made.sweep.folder / "best.yaml" and made.ranking.recommended is not None
    best = config.load(made.best)
    assert best.TRAINING.PRED_TYPE == made.ranking.recommended.cell[PRED_TYPE]
    assert best.TRAINING.NETWORK.SCHEDULER == made.ranking.recommended.cell[SCHEDULER]


def page_without_vega(text: str) -> str:
    """The page without the script that draws its charts."""
    assert text.count(vega()) == 1  # once, however many charts
    return text.replace(vega(), "")


@pytest.mark.slow
def test_the_page_needs_nothing_but_itself(made: report.ReportFiles) -> None:
    text = page_without_vega(made.html.read_text())
    assert "://" not in re.sub(r"data:image/png;base64,[\w+/=]+", "", text)
    assert text.count("data:image/png") == 10  # nine cells and the real images


@pytest.mark.slow
def test_every_section_is_there(folder: Path) -> None:
    change(folder / "sweep.json", skipped=[{"cell": {PRED_TYPE: "none"}, "reason": "impossible"}])
    assert [section.title for section in report.assess(folder).sections] == [
        "Samples",
        "Ranking",
        "x0-error by noise level",
        "Cost",
        "Training curves",
        "Failed, skipped and not ranked",
        "Differences",
        "Factors",
        "Heat maps",
        "Configuration",
        "Provenance",
    ]


@pytest.mark.slow
def test_texts_are_escaped(folder: Path) -> None:
    evil = "<script>alert('x')</script> & \"more\""
    change(folder / "sweep.json", question=evil, name=evil, command=["launch/sweep.py", evil])
    change(outcome(folder, 0), status="failed", reason=evil)
    change(outcome(folder, 1), cell={PRED_TYPE: evil, SCHEDULER: evil})
    change(run_dir(folder, 2) / "provenance.json", host=evil)
    text = page_without_vega(html(folder))
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text
    assert text.count("<script>") == 2 and text.count("</script>") == 3


@pytest.mark.slow
def test_failed_and_skipped_are_shown_with_their_reasons(folder: Path) -> None:
    change(outcome(folder, 0), status="failed", reason="loss is nan at step 12, sample 17")
    skipped = {"cell": {PRED_TYPE: "noise", SCHEDULER: "zero"}, "reason": "undefined at T"}
    change(folder / "sweep.json", skipped=[skipped])
    made = report.assess(folder)
    text = as_html(made)
    assert "loss is nan at step 12, sample 17" in text and "undefined at T" in text
    assert "8 of 9 trials finished, 1 failed, 1 cell skipped" in text
    assert made.ranking.excluded == (("linear · noise", "seed 0 failed"),)


@pytest.mark.slow
def test_an_unfinished_sweep_says_how_to_continue(folder: Path) -> None:
    for number in (3, 4):
        outcome(folder, number).unlink()
    text = html(folder)
    assert "7 of 9 trials finished" in text and "2 of 9 trials are left" in text
    assert "python launch/sweep.py sweeps/tiny.yaml" in text


def test_nothing_finished_is_no_answer(folder: Path) -> None:
    shutil.rmtree(folder / "ledger")
    made = report.build(folder)
    assert made.verdict.headline == "No answer yet." and made.best is None
    assert "0 of 9 trials finished" in made.html.read_text()


@pytest.mark.slow
def test_missing_and_damaged_files_are_named_not_guessed(folder: Path) -> None:
    (run_dir(folder, 0) / "evaluation.npz").write_bytes(b"PK damaged")
    (run_dir(folder, 1) / "metrics.jsonl").write_text('{"step": 4, "n_loss": 1.0}\n{"step": 8, "n_')
    (run_dir(folder, 2) / "samples.npz").unlink()
    (run_dir(folder, 3) / "provenance.json").write_text("{")
    (run_dir(folder, 4) / "training_config.yaml").write_text(": : [")
    outcome(folder, 5).write_text('{"trial": "00000005", "sta')
    (folder / "references.json").unlink()
    made = report.build(folder)
    text = made.html.read_text()
    assert made.ranking.excluded == (("linear · noise", "seed 0 has no evaluation.npz"),)
    assert "ledger/00000005.json cannot be read; its trial is left out." in text
    assert "Gaussian fit" not in text and len(made.ranking.standings) == 7


@pytest.mark.parametrize(
    ("saved", "window"),
    [([-7, 5], (-7, 5)), (None, None), ([5, -7], None), ([-7.5, 5], None), ({"low": 1}, None)],
)
def test_the_window_of_a_sweep_is_read(tmp_path: Path, saved: object, window: object) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "x", "window": saved}))
    assert reading.read_results(tmp_path).window == window


@pytest.mark.slow
def test_a_diverged_trial_is_not_ranked(folder: Path) -> None:
    path = run_dir(folder, 0) / "evaluation.npz"
    with np.load(path) as saved:
        arrays = {name: saved[name] for name in saved.files}
    np.savez(path, **arrays | {"mse": arrays["mse"] * np.nan})
    made = report.build(folder)
    reason = "seed 0 gives numbers that are not finite"
    assert made.ranking.excluded == (("linear · noise", reason),)
    assert "not ranked" in made.html.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"data_sha256": "1" * 64}, "2 different data sets"),
        ({"seed": 1}, "different (image, noise)"),
    ],
)
def test_what_was_not_measured_alike_is_not_ranked(folder: Path, facts: dict, said: str) -> None:
    change(run_dir(folder, 0) / "evaluation.json", **facts)
    made = report.assess(folder)
    assert said in made.verdict.sentences[0] and made.verdict.headline == "No comparison."
    assert not made.ranking.standings and made.ranking.recommended is None


@pytest.mark.slow
def test_bits_stand_beside_the_ranking_and_never_decide_it(
    folder: Path, made: report.ReportFiles
) -> None:
    assert "Bits per dimension" not in made.html.read_text()
    for number in range(8):
        bits = {
            "value": 9.123 + number,
            "evaluation_error": 0.012,
            "timesteps": [50, 20, 1, 0],
            "terms": [0.00012, 2.0, 4.0, 3.1],
        }
        change(run_dir(folder, number) / "evaluation.json", bits_per_dim=bits)
    change(run_dir(folder, 8) / "evaluation.json", bits_per_dim={"value": None, "reason": "-"})
    after = report.assess(folder)
    text = as_html(after)
    for number in range(8):
        assert f"{9.123 + number:.3f} \u00b1 0.012" in text
    assert "17.123" not in text and "Not comparable across schedules" in text
    assert [s.label for s in after.ranking.standings] == [s.label for s in made.ranking.standings]


@pytest.mark.slow
def test_trials_of_an_earlier_grid_are_left_out_and_said(folder: Path) -> None:
    planned = json.loads((folder / "sweep.json").read_text())["planned"]
    change(folder / "sweep.json", planned=planned[3:])
    made = report.assess(folder)
    assert len(made.ranking.standings) == 6
    assert "3 trial(s) of an earlier grid" in report.answer(made)


@pytest.mark.slow
def test_a_single_run_has_a_report_without_ranking(folder: Path) -> None:
    run = run_dir(folder, 4)
    made = report.build(run)
    text = made.html.read_text()
    assert made.verdict.headline.startswith("x0-error of this run: mean log10 error")
    assert "<h2>Ranking</h2>" not in text and "ddpm sample" in text and "unfinished" in text
    (run / "DONE.json").write_text(json.dumps({"run_id": "0", "summary": {"images_per_s": 1234.0}}))
    text = html(run)
    assert "1,234" in text and "unfinished" not in text
    assert not (run / "best.yaml").exists()


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a sweep .* nor a run"):
        report.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_results_csv_has_a_row_a_trial(folder: Path) -> None:
    change(outcome(folder, 0), status="failed", reason="no, really\nnot")
    skipped = {"cell": {PRED_TYPE: "noise", SCHEDULER: "zero"}, "reason": "undefined at T"}
    change(folder / "sweep.json", skipped=[skipped])
    made = report.assess(folder)
    rows = list(csv.DictReader(io.StringIO(csv_text(made.sweep, made.ranking))))
    assert [row["status"] for row in rows] == ["done"] * 8 + ["failed", "skipped"]
    assert [row["rank"] for row in rows[:8]] == [str(k) for k in range(1, 9)]
    best = made.ranking.standings[0]
    assert float(rows[0][X0_MEASURES[0]]) == best.value(X0_MEASURES[0])
    assert rows[0]["packed"] == "true" and float(rows[0]["peak_memory_bytes"]) >= 700 * 2**20
    assert rows[8]["reason"] == "no, really\nnot" and rows[9]["reason"] == "undefined at T"
    assert rows[9][SCHEDULER] == "zero"


@pytest.mark.slow
def test_the_printed_table_has_every_cell_and_the_answer(made: report.ReportFiles) -> None:
    for width in (80, 120):
        out = io.StringIO()
        made.print(Console(file=out, width=width))
        text = out.getvalue()
        assert all(standing.label in text for standing in made.ranking.standings)
        flat = " ".join(text.split())
        assert made.verdict.headline in flat and "evaluation error" in flat
        assert max(map(len, text.splitlines()[:-1])) <= width
    assert "700 MiB" in text


def test_no_torch_is_imported() -> None:
    code = "import ddpm.report, sys; print('torch' in sys.modules, 'sklearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_the_command_says_where_everything_lies(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), "--dry-run"]) == 0
    assert "would write" in capsys.readouterr().out and not (folder / "report.html").exists()
    assert main([str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"report: {folder / 'report.html'}"
    named = [word.rstrip(":,") for line in lines for word in line.split() if str(folder) in word]
    for name in ("report.html", "report.md", "results.csv", "best.yaml", "tables/"):
        assert f"{folder}/{name}" in named
    assert all(Path(word).exists() for word in named)


@pytest.mark.slow
def test_a_baseline_stands_in_page_answer_and_statistics(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "SCHEDULER=linear,PRED_TYPE=noise"
    assert main([str(folder), "--baseline", named]) == 0
    assert "Against the baseline linear \u00b7 noise" in " ".join(capsys.readouterr().out.split())
    text = (folder / "report.html").read_text()
    assert "the baseline that was named" in text and "(Dunnett)" in text
    said = json.loads((folder / "statistics.json").read_text())
    assert said["against_baseline"]["reference"] == "linear \u00b7 noise"
    assert said["against_recommended"]["reference"] == said["recommended"]
    for name in ("against_baseline", "against_recommended"):
        assert len(said[name]["cells"]) == 8
    with pytest.raises(InputError, match="names none of the ranked cells"):
        main([str(folder), "--baseline", "SCHEDULER=square"])
    with pytest.raises(InputError, match="is one run, with no cells"):
        main([str(run_dir(folder, 0)), "--baseline", named])


@pytest.mark.slow
def test_statistics_json_has_the_numbers_of_the_page(made: report.ReportFiles) -> None:
    text = made.html.read_text()
    said = json.loads((made.sweep.folder / "statistics.json").read_text())
    assert said["format"] == 3 and said["against_baseline"] is None
    for measure in X0_MEASURES:
        part = said["measures"][measure]
        assert part["intervals"] == "evaluation error"
        assert part["paired_over_unpaired_variance"] is None
        assert part["factors"]["keys"] == [SCHEDULER, PRED_TYPE]
        assert [len(one["levels"]) for one in part["factors"]["effects"]] == [3, 3]
        assert all(escape(sentence) in text for sentence in part["sentences"])


@pytest.mark.slow
def test_the_page_of_an_assessed_sweep_is_the_built_one(made: report.ReportFiles) -> None:
    assert as_html(report.assess(made.sweep.folder)) == made.html.read_text()
