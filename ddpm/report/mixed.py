"""What is not the same for all trials of a sweep, or not there, so that a comparison limps."""

from collections import Counter
from collections.abc import Iterator, Sequence

from ddpm.report.data import Sweep, Trial
from ddpm.report.labels import cell_label, listed, text, varied

# Facts of an evaluation that are the same where trials were measured alike, unless varied.
_MEASURED = {"step": "after different numbers of optimizer steps", "weights": "different weights"}
_VARIES_STEPS = ("EPOCHS", "STEPS_PER_EPOCH", "BATCH_SIZE", "DATASET.")


def mixed(sweep: Sweep) -> Iterator[str]:
    """Sentences, one a warning."""
    trials = [t for t in sweep.trials if t.status == "done" and t.error is not None]
    keys = varied(trial.cell for trial in sweep.trials)
    yield from _twice(trials, keys)
    yield from _seeds(trials, keys)
    yield from _not_evaluated(sweep)
    yield from _settings(trials, keys)


def _twice(trials: Sequence[Trial], keys: Sequence[str]) -> Iterator[str]:
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


def _seeds(trials: Sequence[Trial], keys: Sequence[str]) -> Iterator[str]:
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


def _not_evaluated(sweep: Sweep) -> Iterator[str]:
    count = sum(trial.status == "done" and trial.error is None for trial in sweep.trials)
    if count and sweep.is_sweep:
        yield (
            f"{count} finished {'trial has' if count == 1 else 'trials have'} no evaluation and "
            "cannot be ranked; nothing is put in their place."
        )


def _settings(trials: Sequence[Trial], keys: Sequence[str]) -> Iterator[str]:
    for name, said in _MEASURED.items():
        values = {text(t.evaluation[name]) for t in trials if name in t.evaluation}
        if name == "step" and any(part in key for key in keys for part in _VARIES_STEPS):
            continue
        if name == "weights" and any("EMA" in key for key in keys):
            continue
        if len(values) > 1:
            what = said if name == "step" else f"with {said}"
            yield f"The trials were evaluated {what}: {listed(sorted(values))}."
