"""The best evaluation's checkpoint is kept, and training ends when none better comes."""

import json
from pathlib import Path

import pytest

from ddpm.config.schema import Evaluation
from ddpm.errors import InputError
from ddpm.runs import checkpoint
from ddpm.runs.directory import RunDirectory
from ddpm.runs.logs import Patience, best_step, judge_evaluations
from ddpm.training.trainer import Every, train
from tests.support.tiny_training import rows, run, tiny
from tests.training.test_trainer import SCHEDULE, digits, network, settings

MEASURE = "mean_log10_mse"
OPTIONS = Evaluation(EVERY=1, BEST=MEASURE, PATIENCE=2)


def evaluations(*values: float | None) -> list[dict[str, object]]:
    """Rows of a run: one without an evaluation after each with one."""
    found: list[dict[str, object]] = []
    for index, value in enumerate(values):
        found.append({"step": 10 * index + 5, f"val_{MEASURE}": value})
        found.append({"step": 10 * index + 10, "loss": 1.0})
    return found


@pytest.mark.parametrize(
    ("values", "best", "verdict"),
    [
        ((), None, Patience.NOTHING),
        ((3.0,), 5, Patience.KEEP),
        ((3.0, 2.0), 15, Patience.KEEP),
        ((2.0, 3.0), 5, Patience.NOTHING),
        ((2.0, 2.0), 5, Patience.NOTHING),
        ((2.0, 3.0, 2.5), 5, Patience.ENOUGH),
        ((3.0, 4.0, 2.0), 25, Patience.KEEP),
        ((None, 3.0), 15, Patience.KEEP),
        ((3.0, None, 4.0, 4.0), 5, Patience.ENOUGH),
    ],
)
def test_the_lowest_is_best_and_patience_counts_since_then(
    values: tuple[float | None, ...], best: int | None, verdict: Patience
) -> None:
    assert best_step(evaluations(*values), OPTIONS) == best
    assert judge_evaluations(evaluations(*values), OPTIONS) == verdict
    assert judge_evaluations(evaluations(*values), Evaluation(EVERY=1)) == Patience.NOTHING
    patient = Evaluation(EVERY=1, BEST=MEASURE)
    assert Patience.ENOUGH not in judge_evaluations(evaluations(*values), patient)


@pytest.mark.slow
def test_the_best_is_saved_and_enough_ends_the_training_whole() -> None:
    """Steps of 5: the third evaluation is the best, two later ones are not."""
    values = iter([3.0, 2.0, 1.0, 1.5, 1.2, 0.0])
    seen: list[dict[str, float]] = []

    def verdict(row: dict[str, float]) -> Patience:
        seen.append(row)
        return judge_evaluations(seen, OPTIONS)

    reports = list(
        train(
            settings(8, SAVE_PERIOD=None),
            network(),
            SCHEDULE,
            digits(),
            evaluator=Every(steps=5, call=lambda unet: {f"val_{MEASURE}": next(values)}),
            judge=verdict,
        )
    )
    assert [r.step for r in reports] == [5, 10, 15, 20, 25]
    assert [r.state is not None for r in reports] == [True, True, True, False, True]
    assert not reports[-1].stopped and [row["step"] for row in seen] == [5, 10, 15, 20, 25]


@pytest.mark.slow
def test_a_run_keeps_the_checkpoint_of_its_best_evaluation(
    tmp_path: Path, few_digits: Path
) -> None:
    """A learning rate that soon spoils what it has learned; of checkpoints only the newest kept."""
    changed = (
        "EVALUATION.EVERY=1",
        f"EVALUATION.BEST={MEASURE}",
        "EVALUATION.PATIENCE=3",
        "TRAINING.EMA_DECAYS=[0.0]",
        "TRAINING.CHECKPOINTS_KEEP=1",
        "TRAINING.HYPER_PARAMETERS.EPOCHS=40",
        "TRAINING.HYPER_PARAMETERS.LR_TYPE=constant",
        "TRAINING.HYPER_PARAMETERS.LEARNING_RATE=0.2",
    )
    path = run(tmp_path, few_digits, *changed)
    measured = {row["step"]: row[f"val_{MEASURE}"] for row in rows(path)}
    best, last = min(measured, key=lambda step: (measured[step], step)), max(measured)
    directory = RunDirectory(path)
    assert directory.best_step == best == directory.summary["best_step"]
    assert checkpoint.steps(path / "checkpoints") == [best, last]
    assert sum(step > best for step in measured) == 3 and last < 40 * 2
    checkpoint.verify_checkpoint(checkpoint.folder_of(path / "checkpoints", best))

    # killed when the last step was saved, before the run had said that it was done
    before = (path / "metrics.jsonl").read_text()
    (path / "DONE.json").unlink()
    run(tmp_path, few_digits, *changed)
    assert (path / "metrics.jsonl").read_text() == before and directory.is_finished


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("BEST=snr_weighted_mse",), "BEST is snr_weighted_mse but EVERY is null"),
        (("EVERY=1", "PATIENCE=2"), "PATIENCE is 2 but BEST is null"),
        (("EVERY=1", "BEST=loss"), "BEST is loss"),
    ],
)
def test_impossible_wishes_are_refused(keys: tuple[str, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tiny(*(f"EVALUATION.{key}" for key in keys))


def test_rows_are_read_as_they_are_written(tmp_path: Path) -> None:
    line = json.dumps({"step": 5, f"val_{MEASURE}": None})
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert best_step(RunDirectory(tmp_path).metrics(), OPTIONS) is None
