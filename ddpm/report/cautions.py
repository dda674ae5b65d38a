"""Cautions about a sweep: facts of its trials that are missing or not the same for all.

Each makes a comparison limp; the page says them beside the answer.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ddpm.report.labels import PRED_TYPE, SCHEDULER, cell_label, listed, part, text, varied
from ddpm.report.reading import SweepResults, TrialResult, Value, mapping

# Facts of an evaluation that are the same where trials were measured alike, unless varied.
_MEASURED = {"step": "after different numbers of optimizer steps", "weights": "different weights"}
_VARIES_STEPS = ("EPOCHS", "STEPS_PER_EPOCH", "BATCH_SIZE", "DATASET.")


def mixed(sweep: SweepResults) -> Iterator[str]:
    """Sentences, one a warning."""
    trials = [t for t in sweep.trials if t.status == "done" and t.error is not None]
    keys = varied(trial.cell for trial in sweep.trials)
    yield from _twice(trials, keys)
    yield from _seeds(trials, keys)
    yield from _not_evaluated(sweep)
    yield from _settings(trials, keys)


def _twice(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    counts = Counter((trial.key, trial.seed) for trial in trials)
    names = {
        f"{cell_label(trial.cell, keys)}, seed {trial.seed}"
        for trial in trials
        if counts[trial.key, trial.seed] > 1
    }
    if names:
        yield (
            f"Trained more than once: {listed(sorted(names))}. The last of them is ranked; the "
            "others are left out."
        )


def _seeds(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    """Seeds that some cells have and others lack; cells with seeds of their own lack none."""
    has: dict[str, set[int]] = {}
    names = {trial.key: cell_label(trial.cell, keys) for trial in trials}
    for trial in trials:
        has.setdefault(trial.key, set()).add(trial.seed)
    every = set().union(*has.values()) if has else set()
    shared = Counter(seed for seeds in has.values() for seed in seeds)
    if all(count == 1 for count in shared.values()):
        if len(has) > 1 and len({len(seeds) for seeds in has.values()}) > 1:
            yield "No two cells share a seed, and some have fewer than others."
        return
    lacking = [
        f"{names[key]} (seed {listed([str(one) for one in sorted(every - seeds)])})"
        for key, seeds in has.items()
        if every - seeds
    ]
    if lacking:
        yield (
            f"Seeds are missing in {listed(lacking)}. The numbers of such a cell are means over "
            "fewer seeds; differences allow for it by least squares."
        )


def _not_evaluated(sweep: SweepResults) -> Iterator[str]:
    count = sum(trial.status == "done" and trial.error is None for trial in sweep.trials)
    if count and sweep.is_sweep:
        yield (
            f"{count} finished {'trial has' if count == 1 else 'trials have'} no evaluation and "
            "cannot be ranked; nothing is put in their place."
        )


def _settings(trials: Sequence[TrialResult], keys: Sequence[str]) -> Iterator[str]:
    for name, said in _MEASURED.items():
        values = {text(t.evaluation[name]) for t in trials if name in t.evaluation}
        if name == "step" and any(part in key for key in keys for part in _VARIES_STEPS):
            continue
        if name == "weights" and any("EMA" in key for key in keys):
            continue
        if len(values) > 1:
            what = said if name == "step" else f"with {said}"
            yield f"The trials were evaluated {what}: {listed(sorted(values))}."


LOSS_SPACE = "TRAINING.LOSS_SPACE"
LEARNING_RATE = "TRAINING.HYPER_PARAMETERS.LEARNING_RATE"
# Keys that differ between trials by construction or say where, not what.
_APART = ("TRAINING.SEED", "TRAINING.OUTPUT_DIR", "DATASET.PATH")


def flags(sweep: SweepResults) -> tuple[str, ...]:
    """Sentences, one a warning; empty where nothing needs saying."""
    trials = [trial for trial in sweep.trials if trial.config]
    found = [
        *sweep.problems,
        *mixed(sweep),
        _confounded(trials),
        _learning_rate(sweep, trials),
        _beta_defined(trials),
        _mixed_code(trials),
        _other_differences(sweep, trials),
        _packed(trials),
    ]
    return tuple(sentence for sentence in found if sentence)


def is_confounded(trials: Sequence[TrialResult]) -> bool:
    """Whether the loss space changes together with the prediction type, not across it."""
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


def _confounded(trials: Sequence[TrialResult]) -> str | None:
    if not is_confounded(trials):
        return None
    return (
        "Prediction type and loss space vary together: each network was trained on the error of "
        "what it predicts, so their effects cannot be separated here. Fix TRAINING.LOSS_SPACE to "
        "compare prediction types alone."
    )


def _learning_rate(sweep: SweepResults, trials: Sequence[TrialResult]) -> str | None:
    rates = {text(trial.config.get(LEARNING_RATE)) for trial in trials}
    cells = {trial.key for trial in trials}
    is_varied = LEARNING_RATE in sweep.grid or LEARNING_RATE in sweep.space
    if len(cells) < 2 or len(rates) != 1 or is_varied:
        return None
    return f"One learning rate, {rates.pop()}, for all cells; it may suit some better than others."


def _beta_defined(trials: Sequence[TrialResult]) -> str | None:
    keys = varied(trial.cell for trial in trials)
    names = {
        part(SCHEDULER, t.config.get(SCHEDULER)) if SCHEDULER in keys else cell_label(t.cell, keys)
        for t in trials
        if t.evaluation.get("is_beta_defined") is True
    }
    if not names:
        return None
    return (
        f"Defined by their betas, so that they change with the number of timesteps: "
        f"{listed(sorted(names))}. Comparing such cells across T also compares noise levels."
    )


def _mixed_code(trials: Sequence[TrialResult]) -> str | None:
    commits = {name for name in map(commit, trials) if name}
    changed = sorted(name for name in commits if name.endswith("+"))
    if len(commits) > 1:
        short = listed(sorted(name[:8] + "+" * name.endswith("+") for name in commits))
        return f"Mixed code versions: the trials ran from commits {short}."
    if changed:
        return (
            f"The code had uncommitted changes on top of {changed[0][:8]}; the commit alone does "
            "not reproduce these trials."
        )
    return None


def _other_differences(sweep: SweepResults, trials: Sequence[TrialResult]) -> str | None:
    varied_on_purpose = {*sweep.space, *(key for trial in trials for key in trial.cell)}
    other = [key for key in differences(trials) if key not in varied_on_purpose]
    other = [key for key in other if not key.startswith(("CLUSTER.", "WANDB."))]
    if not other:
        return None
    return f"The configurations also differ in {listed(other)}, which the grid does not name."


def _packed(trials: Sequence[TrialResult]) -> str | None:
    if not any(trial.summary.get("packed") is True for trial in trials):
        return None
    return (
        "Trials ran side by side on this machine: their images/s are marked packed and are lower "
        "than a trial alone would reach; core- and GPU-seconds compare better."
    )
