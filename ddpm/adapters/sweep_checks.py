"""All that keeps the trials of a sweep from starting, here or as many small jobs."""

from importlib.util import find_spec

from ddpm import comparable, shards
from ddpm.adapters.inception import inception_problems
from ddpm.config import schedule_arguments
from ddpm.evaluate import USUAL_LEVELS, levels_of
from ddpm.ledger import cell_name
from ddpm.measures import MEASURES
from ddpm.schedule import NoiseSchedule
from ddpm.starting import start_problems
from ddpm.sweep import Sweep
from ddpm.tune import Budget


def problems(sweep: Sweep) -> list[str]:
    """All that keeps any trial from starting."""
    found = [problem for t in sweep.trials for problem in shards.source_problems(t.config)]
    found += [problem for t in sweep.trials for problem in start_problems(t.config)]
    measured_by = {
        (t.config.EVALUATION.FEATURES, t.config.EVALUATION.WEIGHTS): t.config for t in sweep.trials
    }
    found += [problem for config in measured_by.values() for problem in inception_problems(config)]
    if any(t.config.DATASET.VALIDATION_FRACTION == 0 for t in sweep.trials):
        found.append(
            "DATASET.VALIDATION_FRACTION is 0 but a sweep compares trials on validation images; "
            "give a share such as 0.1"
        )
    if sweep.tune.SEARCH in ("asha", "bayes") and sweep.tune.METRIC in MEASURES:
        schedules = {cell_name(t.cell): schedule_arguments(t.config) for t in sweep.trials}
        reached = ((name, levels_of(NoiseSchedule(**one))) for name, one in schedules.items())
        found += comparable.level_problems(reached, USUAL_LEVELS)
    if sweep.tune.SEARCH == "bayes" and find_spec("optuna") is None:
        found.append(
            "TUNE.SEARCH is bayes but Optuna is not installed; pip install 'ddpm[search]', or give "
            "another SEARCH"
        )
    return list(dict.fromkeys(found))


def only_here(sweep: Sweep) -> list[str]:
    """What needs one process that sees the whole sweep, and so no `--cluster`."""
    wanted = {
        f"TUNE.SEARCH: {sweep.tune.SEARCH}": sweep.tune.SEARCH != "grid",
        "SEEDS: auto": sweep.race is not None,
        "TUNE.BUDGET": sweep.tune.BUDGET != Budget(),
    }
    return [
        f"--cluster trains a fixed list of trials, but the sweep has {name}, which decides while "
        "they train; run it in one allocation: sbatch slurm/sweep.sh SWEEP"
        for name, is_wanted in wanted.items()
        if is_wanted
    ]


def in_words(sweep: Sweep) -> str | None:
    """How many of the trials named beforehand a search comes to run; None where it is all."""
    if sweep.race is not None:
        first = len([trial for trial in sweep.trials if trial.seed < sweep.race.START])
        return (
            f"SEEDS: auto begins with {first} of them, the first {sweep.race.START} seeds, and "
            "adds seeds only where cells cannot be told apart"
        )
    more = max(0, sweep.tune.trials - len(sweep.trials))
    words = {
        "asha": "asha ends most of them early; what is predicted is a bound",
        "pbt": "pbt trains all of them, the worse going on with the weights of the better",
        "bayes": f"bayes chooses {more} more from what these find",
    }
    return words.get(sweep.tune.SEARCH)
