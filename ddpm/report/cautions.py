"""Cautions about a sweep: facts of its trials that are missing or not the same for all.

Each makes a comparison limp; the page says them beside the answer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ddpm.report.labels import PRED_TYPE, SCHEDULER, SWEEP, cell_label, listed, part, text, varied
from ddpm.report.reading import SweepResults, TrialResult, Value, grouped, mapping

# Facts of an evaluation that are the same where trials were measured alike, unless such keys vary.
_MEASURED = {
    "step": (
        "after different numbers of optimizer steps",
        ("EPOCHS", "STEPS_PER_EPOCH", "BATCH_SIZE", "DATASET."),
    ),
    "weights": ("with different weights", ("EMA",)),
}


def mixed(sweep: SweepResults) -> Iterator[str]:
    """Sentences on trials that are missing, or were not measured as the others were."""
    trials = [t for t in sweep.trials if t.status == "done" and t.error is not None]
    keys = varied(trial.cell for trial in sweep.trials)
    counts = Counter((trial.key, trial.seed) for trial in trials)
    again = {
        f"{cell_label(trial.cell, keys)}, seed {trial.seed}"
        for trial in trials
        if counts[trial.key, trial.seed] > 1
    }
    if again:
        yield (
            f"Trained more than once: {listed(sorted(again))}. The last of them is ranked; the "
            "others are left out."
        )
    for some in grouped(trials, lambda trial: str(trial.cell.get(SWEEP))).values():
        yield from _seeds(some, keys)
    count = sum(trial.status == "done" and trial.error is None for trial in sweep.trials)
    if count and sweep.is_sweep:
        yield (
            f"{count} finished {'trial has' if count == 1 else 'trials have'} no evaluation and "
            "cannot be ranked; nothing is put in their place."
        )
    for name, (said, varying) in _MEASURED.items():
        values = {text(t.evaluation[name]) for t in trials if name in t.evaluation}
        if len(values) > 1 and not any(part in key for key in keys for part in varying):
            yield f"The trials were evaluated {said}: {listed(sorted(values))}."


def _seeds(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    """Seeds that some cells have and others lack; cells with seeds of their own lack none."""
    cells = grouped(trials, lambda trial: cell_label(trial.cell, keys))
    has = {name: {trial.seed for trial in some} for name, some in cells.items()}
    shared = Counter(seed for seeds in has.values() for seed in seeds)
    if all(count == 1 for count in shared.values()):
        if len({len(seeds) for seeds in has.values()}) > 1:
            yield "No two cells share a seed, and some have fewer than others."
        return
    lacking = [
        f"{name} (seed {listed([str(one) for one in sorted(shared.keys() - seeds)])})"
        for name, seeds in has.items()
        if shared.keys() - seeds
    ]
    if lacking:
        yield (
            f"Seeds are missing in {listed(lacking)}. The numbers of such a cell are means over "
            "fewer seeds; differences allow for it by least squares."
        )


LOSS_SPACE = "TRAINING.LOSS_SPACE"
LEARNING_RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
# Keys that differ between trials by construction or say where, not what.
_APART = ("TRAINING.SEED", "TRAINING.OUTPUT_DIR", "DATASET.PATH")


def flags(sweep: SweepResults) -> tuple[str, ...]:
    """Sentences, one a warning; empty where nothing needs saying."""
    return (*sweep.problems, *mixed(sweep), *_of_configurations(sweep))


def is_confounded(trials: Sequence[TrialResult]) -> bool:
    """True where the loss space changes together with the prediction type, not across it."""
    pairs = {(t.config.get(PRED_TYPE), _loss_space(t)) for t in trials if t.config}
    types, spaces = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
    return len(types) > 1 and len(spaces) > 1 and len(pairs) < len(types) * len(spaces)


def differences(trials: Sequence[TrialResult]) -> dict[str, tuple[str, ...]]:
    """Keys whose values differ between trials, with the values in order of appearance."""
    keys = dict.fromkeys(key for trial in trials for key in trial.config)
    found = {}
    for key in keys:
        values = dict.fromkeys(text(trial.config.get(key)) for trial in trials if trial.config)
        if len(values) > 1 and key not in _APART:
            found[key] = tuple(values)
    return found


def commit(trial: TrialResult) -> str | None:
    """The git commit a trial ran from, `+` behind it when files had been changed."""
    value = trial.provenance.get("git")
    if isinstance(value, str):
        return value
    facts: Mapping[str, Value] = mapping(value) or trial.provenance
    name = facts.get("commit", facts.get("git_commit"))
    if not isinstance(name, str) or not name:
        return None
    return name + ("+" if facts.get("dirty", facts.get("git_dirty")) else "")


def _loss_space(trial: TrialResult) -> Value:
    return trial.config.get(LOSS_SPACE) or trial.config.get(PRED_TYPE)


def _of_configurations(sweep: SweepResults) -> Iterator[str]:
    """Sentences on how the trials were configured and on the code that ran them."""
    trials = [trial for trial in sweep.trials if trial.config]
    if is_confounded(trials):
        yield (
            "Prediction type and loss space vary together: each network was trained on the error "
            "of what it predicts, so their effects cannot be separated here. Fix "
            "TRAINING.LOSS_SPACE to compare prediction types alone."
        )
    rates = {text(trial.config.get(LEARNING_RATE)) for trial in trials}
    is_varied = LEARNING_RATE in sweep.grid or LEARNING_RATE in sweep.space
    if len({trial.key for trial in trials}) > 1 and len(rates) == 1 and not is_varied:
        yield (
            f"One learning rate, {rates.pop()}, for all cells; it may suit some better than others."
        )
    keys = varied(trial.cell for trial in trials)
    by_betas = {
        part(SCHEDULER, t.config.get(SCHEDULER)) if SCHEDULER in keys else cell_label(t.cell, keys)
        for t in trials
        if t.evaluation.get("is_beta_defined") is True
    }
    if by_betas:
        yield (
            "Defined by their betas, so that they change with the number of timesteps: "
            f"{listed(sorted(by_betas))}. Comparing such cells across T also compares noise levels."
        )
    commits = sorted({name for name in map(commit, trials) if name})
    changed = [name for name in commits if name.endswith("+")]
    if len(commits) > 1:
        short = listed(sorted(name[:8] + "+" * name.endswith("+") for name in commits))
        yield f"Mixed code versions: the trials ran from commits {short}."
    elif changed:
        yield (
            f"The code had uncommitted changes on top of {changed[0][:8]}; the commit alone does "
            "not reproduce these trials."
        )
    on_purpose = {*sweep.space, *(key for trial in trials for key in trial.cell)}
    other = [key for key in differences(trials) if key not in on_purpose]
    if other := [key for key in other if not key.startswith(("CLUSTER.", "WANDB."))]:
        yield f"The configurations also differ in {listed(other)}, which the grid does not name."
    if any(trial.summary.get("packed") is True for trial in trials):
        yield (
            "Trials ran side by side on this machine: their images/s are marked packed and are "
            "lower than a trial alone would reach; core- and GPU-seconds compare better."
        )
