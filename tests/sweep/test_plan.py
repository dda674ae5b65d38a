"""ddpm.sweep: which trials a grid means, which cells it skips, and what it refuses."""

import itertools
from pathlib import Path

import pytest

from ddpm import config as c
from ddpm.errors import InputError
from ddpm.sweep.ledger import Ledger, Outcome
from ddpm.sweep.plan import STARTUP, Sweep, load_sweep, write_best
from tests.support.tree import ROOT

SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
BASE = f"BASE: {ROOT / 'configs' / 'digits.yaml'}\n"
GRID = "GRID: {TRAINING.PRED_TYPE: [noise, image, velocity]}\n"
SCHEDULER, PRED_TYPE = "TRAINING.NETWORK.SCHEDULER", "TRAINING.PRED_TYPE"


def write(folder: Path, text: str, name: str = "test.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def sweep(folder: Path, text: str, *overrides: str) -> Sweep:
    return load_sweep(write(folder, text), overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        sweep(folder, text, *overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_shipped_sweep_is_the_product_of_its_axes_and_seeds(path: Path) -> None:
    loaded = load_sweep(path)
    cells = 1
    for values in loaded.grid.values():
        cells *= len(values)
    cells *= loaded.tune.trials if loaded.space else 1
    if loaded.tune.SEARCH == "bayes":
        cells = STARTUP
    seeds = loaded.tune.TUNING_SEEDS if loaded.tune.WITHIN else loaded.seeds
    assert len(loaded.trials) == (cells - len(loaded.skipped)) * len(seeds)
    ids = {trial.identified("data").trial_id for trial in loaded.trials}
    assert len(ids) == len(loaded.trials)
    assert loaded.question.endswith("?")
    assert f"python launch/sweep.py sweeps/{path.name}" in path.read_text().splitlines()[0]


def test_the_pred_types_sweep_varies_what_is_predicted_and_nothing_else() -> None:
    loaded = load_sweep(ROOT / "sweeps" / "pred_types.yaml")
    assert [(t.cell[SCHEDULER], t.cell[PRED_TYPE]) for t in loaded.trials] == list(
        itertools.product(("linear", "cosine", "cos6"), ("noise", "image", "velocity"))
    )
    assert {trial.config.TRAINING.LOSS_SPACE for trial in loaded.trials} == {"velocity"}
    first = loaded.trials[0].config
    changed = {line.split(":")[0] for t in loaded.trials for line in c.difference(first, t.config)}
    assert changed == {SCHEDULER, PRED_TYPE}


def test_the_full_grid_is_three_by_three_by_three_with_three_seeds() -> None:
    loaded = load_sweep(ROOT / "sweeps" / "full_grid.yaml")
    assert len(loaded.trials) == 81 and not loaded.skipped
    assert {trial.seed for trial in loaded.trials} == {0, 1, 2}


def test_noise_prediction_at_zero_terminal_snr_is_skipped() -> None:
    zero = "GRID.TRAINING.NETWORK.ZERO_TERMINAL_SNR=[false, true]"
    skipped = load_sweep(ROOT / "sweeps" / "full_grid.yaml", [zero]).skipped
    assert len(skipped) == 9
    for one in skipped:
        assert one.cell[PRED_TYPE] == "noise"
        assert one.reason.startswith("TRAINING.PRED_TYPE is noise but")
    assert skipped[0].name == "linear · noise · T=50 · ZERO_TERMINAL_SNR=true"


def test_the_grid_of_the_first_seed_is_complete_before_the_next_begins(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, BASE + GRID + "SEEDS: [5, 3]\n")
    assert [trial.seed for trial in loaded.trials] == [5, 5, 5, 3, 3, 3]
    for trial in loaded.trials:
        assert trial.config.TRAINING.SEED == trial.seed
        assert trial.config.TRAINING.PRED_TYPE == trial.cell[PRED_TYPE]
        (line,) = c.difference(loaded.trials[0].config, trial.config)[-1:] or ["SEED"]
        assert "SEED" in line or "PRED_TYPE" in line


def test_names_are_one_configuration_with_seeds_of_their_own(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, BASE + "NAMES: [a, b, c]\nSEEDS: [0, 2]\n")
    assert [(t.cell["NAME"], t.seed) for t in loaded.trials] == [
        ("a", 0), ("b", 3), ("c", 6), ("a", 2), ("b", 5), ("c", 8),
    ]  # fmt: skip
    assert loaded.grid == {"NAME": ("a", "b", "c")} and not loaded.skipped
    for trial in loaded.trials:
        assert trial.config.TRAINING.SEED == trial.seed
        lines = c.difference(loaded.trials[0].config, trial.config)
        assert trial is loaded.trials[0] or len(lines) == 1 and "SEED" in lines[0]
    shipped = load_sweep(ROOT / "sweeps" / "a_a.yaml")
    assert len({trial.seed for trial in shipped.trials}) == len(shipped.trials) == 27


def test_every_impossible_cell_is_skipped_with_its_reason(tmp_path: Path) -> None:
    text = BASE + (
        "GRID:\n"
        "  TRAINING.NETWORK.TIMESTEPS: [10, 20, 60]\n"
        "  TRAINING.NETWORK.SCHEDULER: [cosine, iddpm_linear]\n"
    )
    loaded = sweep(tmp_path, text, "IMAGE_GENERATION.NUM_STEPS=15")
    assert [(t.cell["TRAINING.NETWORK.TIMESTEPS"], t.cell[SCHEDULER]) for t in loaded.trials] == [
        (20, "cosine"),
        (60, "cosine"),
        (60, "iddpm_linear"),
    ]
    reasons = [one.reason for one in loaded.skipped]
    assert "NUM_STEPS is 15 but TRAINING.NETWORK.TIMESTEPS is 10" in reasons[0]
    assert "beta >= 1" in reasons[1] and "NUM_STEPS" in reasons[1]
    assert "beta >= 1" in reasons[2] and "NUM_STEPS" not in reasons[2]


def test_sections_of_the_sweep_file_stand_over_those_of_its_base(tmp_path: Path) -> None:
    text = BASE + GRID + "evaluation:\n  num: 77\nTRAINING: {NETWORK: {TIMESTEPS: 60}}\n"
    loaded = sweep(tmp_path, text, "TRAINING.NETWORK.TIMESTEPS=70")
    base = c.load(ROOT / "configs" / "digits.yaml")
    for trial in loaded.trials:
        assert trial.config.EVALUATION.NUM == 77
        assert trial.config.TRAINING.NETWORK.TIMESTEPS == 70
        assert trial.config.TRAINING.HYPER_PARAMETERS == base.TRAINING.HYPER_PARAMETERS
    (line,) = problems(tmp_path, BASE + GRID + "EVALUATION:\n  NUMM: 3\n")
    assert "test.yaml:4: EVALUATION.NUMM" in line and "did you mean EVALUATION.NUM?" in line
    lines = problems(tmp_path, BASE + GRID + "EVALUATION: 3\nEVALUATIONS: {}\n")
    assert any("EVALUATION is" in line for line in lines)
    assert any("test.yaml:4: EVALUATIONS is no key" in line for line in lines)


@pytest.mark.slow
def test_every_shipped_sweep_compares_samples_of_one_walk(tmp_path: Path) -> None:
    for path in SWEEPS:
        found = {t.config.EVALUATION for t in load_sweep(path).trials}
        (evaluation,) = found
        if evaluation.SAMPLING_STEPS:
            assert evaluation.SAMPLING_LOGSNR is not None, path
    (line,) = problems(tmp_path, BASE + "GRID: {EVALUATION.SAMPLING_NUM: [64, 128]}\n")
    assert "cannot be varied: cells would be compared by different samples" in line


def test_a_grid_of_impossible_cells_alone_is_refused(tmp_path: Path) -> None:
    text = BASE + "GRID: {TRAINING.NETWORK.TIMESTEPS: [3, 4]}\n"
    lines = problems(tmp_path, text, "IMAGE_GENERATION.NUM_STEPS=50")
    assert lines[0].endswith("every cell is impossible")
    assert len(lines) == 3


def test_a_mistake_in_an_impossible_cell_is_still_a_mistake(tmp_path: Path) -> None:
    text = BASE + "GRID: {TRAINING.NETWORK.TIMESTEPS: [3]}\n"
    lines = problems(
        tmp_path, text, "TRAINING.NETWORK.NUM_HEADS=3", "IMAGE_GENERATION.NUM_STEPS=50"
    )
    assert len(lines) == 2 and any("NUM_HEADS is 3" in line for line in lines)


def test_values_are_read_as_the_type_of_their_key(tmp_path: Path) -> None:
    text = BASE + (
        "GRID:\n"
        "  training.hyper_parameters.learning_rate: [1e-4, 1]\n"
        "  TRAINING.NETWORK.CHANNEL_MULTIPLIER: [[1, 2], [2, 2]]\n"
        "  TRAINING.LOSS_FN: [mse]\n"
        "  TRAINING.CLIP_NORM: [null, 1]\n"
    )
    loaded = sweep(tmp_path, text)
    assert loaded.grid == {
        "TRAINING.HYPER_PARAMETERS.LEARNING_RATE": (1e-4, 1.0),
        "TRAINING.NETWORK.CHANNEL_MULTIPLIER": ([1, 2], [2, 2]),
        "TRAINING.LOSS_FN": ("MSE",),
        "TRAINING.CLIP_NORM": (None, 1.0),
    }


def test_overrides_reach_base_grid_seeds_and_limits(tmp_path: Path) -> None:
    loaded = sweep(
        tmp_path,
        BASE + GRID,
        "training.hyper_parameters.batch_size=8",
        "SEEDS=[1, 2]",
        "tune.max_concurrent=3",
        "GRID.TRAINING.NETWORK.SCHEDULER=[linear, cos6]",
        "GRID.TRAINING.PRED_TYPE=[image]",
    )
    assert {t.config.TRAINING.HYPER_PARAMETERS.BATCH_SIZE for t in loaded.trials} == {8}
    assert (loaded.seeds, loaded.tune.MAX_CONCURRENT) == ((1, 2), 3)
    assert loaded.grid == {PRED_TYPE: ("image",), SCHEDULER: ("linear", "cos6")}
    assert loaded.base == loaded.trials[0].config


def test_a_base_can_stand_in_the_sweep_itself_and_refer_to_what_varies(tmp_path: Path) -> None:
    text = (
        "BASE:\n"
        "  DATASET: {NAME: tiny, PATH: digits}\n"
        "  training: {MICRO_BATCH: '${TRAINING.HYPER_PARAMETERS.BATCH_SIZE}'}\n"
        "GRID: {TRAINING.HYPER_PARAMETERS.BATCH_SIZE: [8, 16]}\n"
    )
    loaded = sweep(tmp_path, text)
    assert [trial.config.TRAINING.MICRO_BATCH for trial in loaded.trials] == [8, 16]


def test_a_relative_base_is_sought_beside_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "DATASET: {NAME: tiny, PATH: digits}", "base.yaml")
    path = write(tmp_path, "BASE: base.yaml\n" + GRID)
    monkeypatch.chdir(ROOT)
    assert load_sweep(path).base.DATASET.NAME == "tiny"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BASE, "GRID is null; give dotted keys with a list of values each"),
        (BASE + "GRID: {}", "GRID is a section; give dotted keys"),
        (BASE + "GRID: [1]", "GRID is [1]; give dotted keys"),
        (GRID, "BASE is null; give the path of a configuration, relative to this file"),
        ("BASE: [1]\n" + GRID, "BASE is [1]; give the path"),
        ("BASE: absent.yaml\n" + GRID, "absent.yaml: no such file"),
        (BASE + "GRID: {TRAINING.PRED_TYP: [noise]}", "did you mean TRAINING.PRED_TYPE?"),
        (BASE + "GRID: {TRAINING.PRED_TYPE: []}", "is []; give a list of at least one value"),
        (BASE + "GRID: {TRAINING.PRED_TYPE: noise}", "is noise; give a list of at least one"),
        (BASE + "GRID: {TRAINING.PRED_TYPE: [noise, NOISE]}", "PRED_TYPE holds NOISE twice"),
        (BASE + "GRID: {TRAINING.PRED_TYPE: [nois, image]}", "PRED_TYPE is nois; allowed:"),
        (BASE + "GRID: {TRAINING: {PRED_TYPE: [noise]}}", "GRID.TRAINING is no key"),
        (BASE + "GRID: {TRAINING.SEED: [1, 2]}", "SEED cannot be varied: give SEEDS"),
        (BASE + "GRID: {CLUSTER.NUM_WORKERS: [1]}", "cannot be varied: it changes where a run is"),
        (BASE + "GRID: {DATASET.PATH: [a, b]}", "cannot be varied: it changes where a run is"),
        (BASE + "GRID: {EVALUATION.SEED: [0]}", "cells would be compared on different images"),
        (BASE + GRID + "SEEDS: []", "SEEDS is []; allowed: a non-empty list of values"),
        (BASE + GRID + "SEEDS: 3", "SEEDS is 3; allowed: a non-empty list"),
        (BASE + GRID + "SEEDS: [1, 1]", "SEEDS is [1, 1]; allowed"),
        (BASE + GRID + "SEEDS: [0.5]", "SEEDS is [0.5]; allowed"),
        (BASE + GRID + "SEEDS: [-1]", "SEEDS is [-1]; allowed"),
        (BASE + GRID + "TUNE: {MAX_CONCURENT: 2}", "did you mean TUNE.MAX_CONCURRENT?"),
        (BASE + GRID + "TUNE: {MAX_CONCURRENT: 0}", "TUNE.MAX_CONCURRENT is 0; allowed:"),
        (BASE + GRID + "NAMES: [a, b]", "NAMES and GRID exclude each other"),
        (BASE + "NAMES: [a, a]", "NAMES is [a, a]; allowed"),
        (BASE + "NAMES: []", "GRID is null; give dotted keys"),
        (BASE + GRID + "SEED: [1]", "SEED is no key; did you mean SEEDS?"),
        (BASE + GRID + GRID, "GRID is given twice"),
        (BASE + "GRID:\n  A.B: [1]\n  a.b: [2]", "GRID.A.B is given twice"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_sweep_is_named(tmp_path: Path, text: str, words: str) -> None:
    lines = problems(tmp_path, text)
    assert any(words in line for line in lines), lines
    assert "test.yaml" in "".join(lines) or "absent.yaml" in lines[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("TRAINING.PRED_TYPE=image", "override GRID.TRAINING.PRED_TYPE instead"),
        ("TRAINING.SEED=3", "give SEEDS=[...]"),
        ("TRAINING.SEEED=3", "did you mean TRAINING.SEED?"),
        ("BASE=x", "BASE cannot be set so"),
        ("GRID=[1]", "GRID cannot be set so"),
        ("SEEDS=[1", "not YAML"),
        ("nonsense", "write SECTION.KEY=value"),
        ("TRAINING.NETWORK.NORM_GROUPS=5", "NORM_GROUPS is 5 but FIRST_CHANNEL is 16"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_once(
    tmp_path: Path, override: str, words: str
) -> None:
    (line,) = problems(tmp_path, BASE + GRID, override)
    assert words in line and "command line" in line


def test_all_problems_of_file_base_and_cells_come_at_once(tmp_path: Path) -> None:
    text = BASE + (
        "GRID:\n"
        "  TRAINING.PRED_TYPE: [noise, velocty]\n"
        "  TRAINING.NETWORK.NUM_HEADS: [1, 3]\n"
        "  TRAINING.NETWROK.TIMESTEPS: [1]\n"
        "SEEDS: [a]\n"
        "TUNES: {}\n"
    )
    lines = problems(tmp_path, text, "WANDB.MODE=loud", "TRAINING.MICRO_BATCH=999")
    for words in (
        "test.yaml:3: TRAINING.PRED_TYPE is velocty",
        "test.yaml:4: TRAINING.NETWORK.NUM_HEADS is 3",
        "(in 1 of 2 cells, first noise · NUM_HEADS=3)",
        "test.yaml:5: GRID.TRAINING.NETWROK.TIMESTEPS is no key",
        "SEEDS is [a]",
        "TUNES is no key; did you mean TUNE?",
        "WANDB.MODE is loud",
        "MICRO_BATCH is 999",
    ):
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == 7


def test_a_sweep_whose_name_is_no_folder_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its name becomes a folder's; rename it"):
        load_sweep(write(tmp_path, BASE + GRID, "my sweep.yaml"))


def test_an_endless_grid_is_refused_before_it_is_laid_out(tmp_path: Path) -> None:
    rates = f"  TRAINING.WEIGHT_DECAY: {[n / 100 for n in range(200)]}\n"
    drops = f"  TRAINING.LABEL_DROP: {[n / 400 for n in range(300)]}\n"
    lines = problems(tmp_path, BASE + "GRID:\n" + rates + drops)
    assert "GRID has 60000 cells; give at most 10000" in lines[0]


def test_editing_the_grid_adds_trials_and_reruns_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    before = [t.identified("data") for t in sweep(tmp_path, BASE + GRID).trials]
    for trial in before:
        ledger.record(
            Outcome(
                trial=trial.trial_id, cell=trial.cell, seed=trial.seed, run_dir="run"
            ).done({"loss": 0.5})
        )  # fmt: skip
    assert ledger.todo(before) == []
    wider = (
        "GRID:\n"
        "  TRAINING.NETWORK.SCHEDULER: [cosine, cos6]\n"
        "  TRAINING.PRED_TYPE: [noise, velocity]\n"
    )
    after = [t.identified("data") for t in sweep(tmp_path, BASE + wider + "SEEDS: [0, 1]").trials]
    # cosine is the base's schedule: its two cells of seed 0 are done under another grid.
    todo = ledger.todo(after)
    assert len(after) == 8 and len(todo) == 6
    assert not {t.trial_id for t in todo} & {t.trial_id for t in before}
    assert ledger.todo([t.identified("other data") for t in sweep(tmp_path, BASE + GRID).trials])


def test_the_best_configuration_is_written_ready_to_train(tmp_path: Path) -> None:
    best = sweep(tmp_path, BASE + GRID).trials[1].config
    path = tmp_path / "best.yaml"
    write_best(best, path)
    assert c.load(path) == best
    assert path.read_text().startswith(f"# ddpm train {path}\n")
