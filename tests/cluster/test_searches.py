"""The searches on real trainings of a few steps, round by round in this process; once by Ray."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from ddpm import report
from ddpm.cluster import open_sweep, run_sweep
from ddpm.cluster.open_sweep import OpenSweep, Round, rounds
from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.run_sweep import Allowance
from ddpm.cluster.run_trial import TrialTask, run_trial
from ddpm.cluster.workers import Workers
from ddpm.errors import InputError
from ddpm.runs import checkpoint
from ddpm.runs.directory import RunDirectory
from ddpm.runs.storage import write_json
from ddpm.sweep.comparable import missed_levels
from ddpm.sweep.plan import Trial, load_sweep
from tests.support.tree import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ALONE = Workers(count=1, cpus=1, gpus=0)
RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
SPACE = f"SPACE: {{{RATE}: {{loguniform: [1.0e-4, 1.0e-2]}}}}\n"
SHORT = "TRAINING.HYPER_PARAMETERS.EPOCHS=1"
FAILING = f"GRID: {{{RATE}: [1.0e+4, 1.0e-3]}}\n"
GRID = "GRID: {TRAINING.PRED_TYPE: [image, velocity]}\n"
HEAD = f"""
BASE: {ROOT / "configs" / "digits.yaml"}
WANDB: {{MODE: disabled}}
EVALUATION: {{NUM: 8, EVERY: 1}}
IMAGE_GENERATION: {{NUM_STEPS: 2}}
TRAINING:
  NETWORK: {{FIRST_CHANNEL: 8, NUM_RES_BLOCKS: 1, TIMESTEPS: 60,
            CHANNEL_MULTIPLIER: [1], HAS_ATTENTION: [false]}}
  INLINE_GEN: {{ENABLE: false, NUMS: 10, REVERSE_STRIDE: 20}}
  HYPER_PARAMETERS: {{EPOCHS: 4, STEPS_PER_EPOCH: 3, BATCH_SIZE: 32, WARMUP_STEPS: 2}}
"""


@contextmanager
def opened(folder: Path, text: str, *overrides: str) -> Iterator[OpenSweep]:
    folder.mkdir(exist_ok=True)
    path = folder / "small.yaml"
    path.write_text(HEAD + text)
    sweep = load_sweep(path, [f"TRAINING.OUTPUT_DIR={folder / 'out'}", *overrides])
    with open_sweep.opened(sweep, workers=ALONE, packed=False) as found:
        yield found


def run_here(of: OpenSweep, *, rounds_left: int = 99) -> list[Round]:
    """The rounds of a sweep, each trial in this process as Ray would run it in its own."""
    done = []
    for one in rounds(of):
        if len(done) == rounds_left:
            break
        for trial in one.trials:
            run_one(of, trial)
        done.append(one)
    return done


def names(trials: list[Trial]) -> list[str]:
    return [trial.outcome.name for trial in trials]


@pytest.mark.long
def test_a_race_adds_seeds_where_cells_are_equal_and_remembers_its_looks(
    tmp_path: Path, few_digits: Path
) -> None:
    """Networks that hardly learn are far behind; cells that differ in their sample grids alone are
    trained to the same numbers, and are not told apart. The looks are taken once."""
    grids = "TRAINING.INLINE_GEN.NUMS"
    text = (
        f"GRID: {{{RATE}: [0.004, 1.0e-8], {grids}: [10, 20]}}\n"
        "SEEDS: {auto: {start: 3, max: 4}}\n"
    )
    changed = (f"DATASET.PATH={few_digits}", "EVALUATION.EVERY=null")
    with opened(tmp_path, text, *changed) as of:
        first, second = run_here(of)
        assert len(first.trials) == 12 and {t.seed for t in first.trials} == {0, 1, 2}
        racing = {(trial.cell[RATE], trial.cell[grids]) for trial in second.trials}
        assert racing == {(0.004, 10), (0.004, 20)} and {t.seed for t in second.trials} == {3}
        looks = json.loads((of.folder / "race.json").read_text())
        assert looks["of"] == 2 and [one["seeds"] for one in looks["looks"]] == [3, 4]
        assert not looks["looks"][1]["is_decided"] and len(looks["looks"][1]["racing"]) == 2
        built = report.build(of.folder)
        words = "Race of seeds: after 4 seeds 2 cells cannot be told apart"
        assert words in built.html.read_text()
        assert built.verdict.kind != "winner"
    with opened(tmp_path, text, *changed) as of:
        assert run_here(of) == [] and len(of.trials) == 14
        assert json.loads((of.folder / "race.json").read_text()) == looks


def test_a_budget_of_trials_leaves_the_rest_and_a_larger_one_continues(tmp_path: Path) -> None:
    text = GRID + "SEEDS: [0, 1]\nTUNE: {BUDGET: {TRIALS: 1}}\n"
    with opened(tmp_path, text, SHORT) as of:
        allowance = Allowance(of)
        (one,) = rounds(of)
        (allowed,) = allowance.allowed(one.trials)
        assert allowance.spent is not None and not allowance.is_over()  # what began goes on
        assert run_one(of, allowed) == "done"
        allowance.record_unrun()
        statuses = [of.ledger.outcomes()[t.trial_id].status for t in of.trials]
        assert statuses == ["done", "unrun", "unrun", "unrun"]
        found = report.build(of.folder)
        assert "3 of 4 trials have not been run to their end" in found.html.read_text()
        assert "not run: budget: TUNE.BUDGET.TRIALS allows 1" in found.html.read_text()
    with opened(tmp_path, text.replace("TRIALS: 1", "TRIALS: 3"), SHORT) as of:
        (one,) = rounds(of)
        assert len(one.trials) == 3 and len(Allowance(of).allowed(one.trials)) == 2


@pytest.mark.parametrize(
    ("rest", "kept"),
    [
        ("SEEDS: {auto: {start: 3, max: 4}}\n", "race.json"),
        (SPACE + "TUNE: {WITHIN: cell, TRIALS: 2}\n", "within.json"),
    ],
)
def test_nothing_is_looked_at_or_chosen_after_a_part_of_a_round(
    rest: str, kept: str, tmp_path: Path
) -> None:
    """For want of budget, say: a later command would keep what it had come to."""
    with opened(tmp_path, GRID + rest, SHORT) as of:
        left = rounds(of)
        one = next(left)
        assert len(one.trials) > 1 and run_one(of, one.trials[0]) == "done"
        assert next(left, None) is None and not (of.folder / kept).exists()


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, FAILING, "TRAINING.CLIP_NORM=null") as of:
        run_here(of)
        bad, good = (of.ledger.outcomes()[trial.trial_id] for trial in of.trials)
        assert (bad.status, good.status) == ("failed", "done") and "non-finite" in str(bad.reason)
        assert of.todo() == of.trials[:1]
        assert run_sweep.conclude(of, Console()) == 1
        assert f"failed: {bad.name}: {bad.reason}" in capsys.readouterr().out
        assert "non-finite" in (of.folder / "report.html").read_text()


def test_wall_hours_are_spent_at_their_limit(tmp_path: Path) -> None:
    with opened(tmp_path, GRID + "TUNE: {BUDGET: {WALL_HOURS: 1.0e-12}}\n") as of:
        allowance = Allowance(of)
        assert allowance.is_over()
        words = "of TUNE.BUDGET.WALL_HOURS's 1e-12 wall-hours are spent"
        assert allowance.spent is not None and words in allowance.spent
        later = replace(of.sweep.tune.BUDGET, WALL_HOURS=1.0)
        of.sweep = replace(of.sweep, tune=replace(of.sweep.tune, BUDGET=later))
        assert not Allowance(of).is_over()


def run_one(of: OpenSweep, trial: Trial) -> str:
    return run_trial(replace(TrialTask.of(of, trial), workers=ALONE), should_stop=lambda: False)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    with running_ray(3):
        yield


@pytest.mark.ray
@pytest.mark.long
def test_a_trial_that_fails_leaves_the_others_to_ray(
    ray: None, tmp_path: Path, few_digits: Path
) -> None:
    data = f"DATASET.PATH={few_digits}"
    with opened(tmp_path, FAILING, SHORT, data, "TRAINING.CLIP_NORM=null") as of:
        run_with_ray(of)
        bad, good = (of.ledger.outcomes()[trial.trial_id] for trial in of.trials)
    assert (bad.status, good.status) == ("failed", "done") and "not finite" in str(bad.reason)


@pytest.mark.ray
@pytest.mark.long
def test_ray_halves_and_chooses(ray: None, tmp_path: Path, few_digits: Path) -> None:
    """asha: the worse trials are saved and recorded at their rung, by the number that a trial's
    summary has at its end; what continues asks Ray for nothing it has decided. bayes: draws first,
    then choices, all of them known to the sweep when it is opened again.
    """
    halve = SPACE + "TUNE: {SEARCH: asha, TRIALS: 5, GRACE: 1, REDUCTION: 2}\n"
    choose = SPACE + "TUNE: {SEARCH: bayes, TRIALS: 11}\n"
    data = f"DATASET.PATH={few_digits}"
    with opened(tmp_path, halve, data) as of:
        run_with_ray(of)
        check_halving(of)
        assert list(rounds(of)) == []
    ids = {trial.trial_id for trial in of.trials}
    with opened(tmp_path, halve.replace("TRIALS: 5", "TRIALS: 6"), data) as of:
        new = [t.trial_id for t in of.todo()]
        before = {key: asdict(one) for key, one in of.ledger.outcomes().items()}
        run_with_ray(of)
        after = of.ledger.outcomes()
        assert set(new).isdisjoint(ids) and len(new) == 1 and set(after) == ids | set(new)
        assert all(asdict(after[key]) == one for key, one in before.items())
    (tmp_path / "bayes").mkdir()
    with opened(tmp_path / "bayes", choose, SHORT, data) as of:
        run_with_ray(of)
        assert len(of.trials) == 11 and len(of.ledger.outcomes()) == 11
    with opened(tmp_path / "bayes", choose, SHORT, data) as of:
        assert len(of.trials) == 11 and of.todo() == [] and list(rounds(of)) == []


def run_with_ray(of: OpenSweep) -> None:
    from ddpm.cluster.ray_tune import run_round  # imports Ray, which wants its secret first

    for one in rounds(of):
        run_round(of, one, 1)


def check_halving(of: OpenSweep) -> None:
    ended = of.ledger.outcomes()
    stopped = [one for one in ended.values() if one.status == "stopped"]
    done = [one for one in ended.values() if one.status == "done"]
    assert stopped and done and len(ended) == 5
    page = report.build(of.folder).html.read_text()
    assert f"asha ended {len(stopped)} of 5 trials early" in page
    assert f"{len(done)} of 5 trials finished, {len(stopped)} ended early" in page
    for one in stopped:
        run = RunDirectory(Path(one.run_dir))
        rung = next(r for r in run.metrics() if r["step"] == one.summary["step"])
        assert rung["val_mean_log10_mse"] == pytest.approx(one.summary["val_mean_log10_mse"])
        assert one.summary["images"] == 32 * one.summary["step"]
        assert "stopped early by asha at evaluation" in str(one.reason)
        assert checkpoint.steps(run.checkpoints) == [one.summary["step"] + 1]
    for one in done:
        rows: list[Mapping[str, float]] = RunDirectory(Path(one.run_dir)).metrics()
        final = rows[-1]["val_mean_log10_mse"]
        assert one.summary["val_mean_log10_mse"] == pytest.approx(final, abs=1e-4)
    # a trial that was stopped was worse, at its rung, than half of those that came before it
    best = min(done, key=lambda one: one.summary["val_mean_log10_mse"])
    for one in stopped:
        row = next(
            r
            for r in RunDirectory(Path(best.run_dir)).metrics()
            if r["step"] == one.summary["step"]
        )
        assert row["val_mean_log10_mse"] < one.summary["val_mean_log10_mse"]


def test_a_cell_that_is_added_changes_neither_window_nor_numbers(tmp_path: Path) -> None:
    """One that is shifted by 9 misses half of the window, which shared levels would lack."""
    text = "GRID: {TRAINING.NETWORK.LOGSNR_SHIFT: [0.0, 1.0]}\n"
    with opened(tmp_path, text, SHORT) as of:
        run_here(of)
        window, before = of.window, of.ledger.outcomes()
    path = of.folder / "sweep.json"
    facts = json.loads(path.read_text())
    assert facts.pop("window") == [*window] == [-4, 5]
    path.write_text(json.dumps(facts))  # as an earlier version left it
    with opened(tmp_path, text.replace("1.0]", "1.0, 9.0]"), SHORT) as of:
        assert report.read_results(of.folder).window == of.window == window
        lacking = missed_levels(open_sweep.levels_by_cell(of.sweep), window)
        assert lacking == {"LOGSNR_SHIFT=9.0": (-4, -3, -2, -1, 0)}
        run_here(of)
        after = of.ledger.outcomes()
    assert len(after) == 3 and after.items() >= before.items()
    for one in after.values():
        facts = json.loads((Path(one.run_dir) / "evaluation.json").read_text())
        assert facts["window"] == [*window] and "val_mean_log10_mse" in one.summary
    with (
        pytest.raises(InputError, match="LOGSNR_SHIFT=9.0 reaches no log SNR of"),
        opened(tmp_path / "other", text.replace("1.0]", "1.0, 9.0]") + "TUNE: {SEARCH: asha}\n"),
    ):
        pass
    assert not (tmp_path / "other" / "out" / "sweeps").exists()


@pytest.mark.ray
@pytest.mark.long
def test_a_verdict_reaches_a_trial_of_several_workers(
    ray: None, tmp_path: Path, few_digits: Path
) -> None:
    """It trains in other processes than the one that asks Ray, saves, and stops between two rungs.
    What it is compared with had ended before, and is told again.
    """
    text = f"GRID: {{{RATE}: [4.0e-3, 1.0e-8]}}\nTUNE: {{SEARCH: asha, GRACE: 1, REDUCTION: 2}}\n"
    hyper = "TRAINING.HYPER_PARAMETERS"
    longer = (
        f"DATASET.PATH={few_digits}",
        f"{hyper}.EPOCHS=60",
        f"{hyper}.STEPS_PER_EPOCH=4",
        "EVALUATION.EVERY=6",
    )
    both = Workers(count=2, cpus=1, gpus=0)
    with opened(tmp_path, text, *longer) as of:
        assert run_one(of, of.trials[0]) == "done"
        of.workers = both
        run_with_ray(of)
        good, bad = (of.ledger.outcomes()[trial.trial_id] for trial in of.trials)
        assert (good.status, bad.status) == ("done", "stopped")
        assert "stopped early by asha at evaluation 1 of 10" in str(bad.reason)
        run = RunDirectory(Path(bad.run_dir))
        assert 24 <= checkpoint.steps(run.checkpoints)[-1] < 240
        rung = next(row for row in run.metrics() if row["step"] == 24)
        assert rung["val_mean_log10_mse"] == pytest.approx(bad.summary["val_mean_log10_mse"])


def test_what_is_left_of_a_stopped_trial_is_continued_by_a_grid(tmp_path: Path) -> None:
    """Stopped early is an end for asha alone."""
    text = SPACE + "TUNE: {SEARCH: asha, TRIALS: 2}\n"
    with opened(tmp_path, text) as of:
        blank = of.trials[0].outcome
        of.ledger.record(blank.stopped("for a test", {}))
        assert names(of.todo()) == names(of.trials)[1:]
        grid = replace(of, sweep=replace(of.sweep, tune=replace(of.sweep.tune, SEARCH="grid")))
        assert len(grid.todo()) == 2


def test_asha_compares_a_trial_with_the_draws_of_its_own_cell(tmp_path: Path) -> None:
    """Simulated: `image` is ahead of every trial of `velocity` until the end; of each cell one
    draw has the best rate, and it alone goes on in both.
    """
    from types import SimpleNamespace

    from ray.tune.schedulers import TrialScheduler

    from ddpm.cluster.ray_tune import TIME, VALUE, Halving, brackets

    text = GRID + SPACE + "TUNE: {SEARCH: asha, TRIALS: 4, GRACE: 1, REDUCTION: 4}\n"
    (tmp_path / "small.yaml").write_text(HEAD + text)
    trials = load_sweep(tmp_path / "small.yaml").trials
    trials = [replace(trial, trial_id=f"{number:08x}") for number, trial in enumerate(trials)]
    sweep = SimpleNamespace(grid={"TRAINING.PRED_TYPE": ()}, space={RATE: None})
    rivals = brackets(sweep, trials)  # type: ignore[arg-type]
    assert len(set(rivals.values())) == 2
    halving = Halving(SimpleNamespace(evaluations=4), 1, 4, tmp_path, rivals)  # type: ignore[arg-type]
    ray_trials = [
        SimpleNamespace(trial_id=t.trial_id, config={"trial": t.trial_id}) for t in trials
    ]
    for one in ray_trials:
        halving.on_trial_add(None, one)
    best = {}
    for kind, ahead in (("image", 0.0), ("velocity", 1.0)):
        own = [t for t in trials if t.cell["TRAINING.PRED_TYPE"] == kind]
        far = {t.trial_id: abs(number - 2) for number, t in enumerate(own)}  # the third is best
        best[kind] = own[2].trial_id
        for trial in (own[2], own[0], own[1], own[3]):
            one = next(one for one in ray_trials if one.trial_id == trial.trial_id)
            result = {TIME: 1, VALUE: ahead + 0.1 * far[trial.trial_id]}
            assert halving.on_trial_result(None, one, result) == TrialScheduler.CONTINUE
    ended = {path.stem for path in tmp_path.glob("*.json")}
    assert ended == {t.trial_id for t in trials} - set(best.values())
    words = json.loads((tmp_path / f"{next(iter(ended))}.json").read_text())
    assert words["of"] <= 4
    # where nothing is drawn, the cells themselves compete
    alone = brackets(SimpleNamespace(grid={}, space={}), trials)  # type: ignore[arg-type]
    assert len(set(alone.values())) == 1


def test_trainings_that_choose_are_tried_again_and_what_was_chosen_stays(tmp_path: Path) -> None:
    text = SPACE + "GRID: {TRAINING.PRED_TYPE: [noise, velocity]}\n"
    text += "SEEDS: [0]\nTUNE: {WITHIN: cell, TRIALS: 2}\n"
    with opened(tmp_path, text) as of:
        for one in rounds(of):
            for trial in one.trials:
                of.ledger.record(trial.outcome.failed("no disk"))
        kept = json.loads((of.folder / "within.json").read_text())
        assert kept["cells"] == []
        noise = [t for t in of.trials if t.cell["TRAINING.PRED_TYPE"] == "noise"]
        chosen = {"cell": {"TRAINING.PRED_TYPE": "noise"}, "chosen": {RATE: noise[0].cell[RATE]}}
        write_json(of.folder / "within.json", kept | {"cells": [chosen]})
        again, compared = rounds(of)
        assert len(again.trials) == 4 and all(trial.is_tuning for trial in again.trials)
        (trial,) = compared.trials
        assert trial.chosen == chosen["chosen"] and not trial.is_tuning
