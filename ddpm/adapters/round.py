"""One round of a sweep: trials to run, and how Tune goes about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ddpm.adapters.ray_tune import TO_THE_END, Search
from ddpm.adapters.sweep_setup import OpenSweep, Trial
from ddpm.rungs import Ladder
from ddpm.trainer import steps_per_epoch


@dataclass(frozen=True, kw_only=True)
class Round:
    """Trials to run, and how Tune goes about them."""

    trials: Sequence[Trial]
    search: Search = TO_THE_END


def ladder_of(opened: OpenSweep, trial: Trial) -> Ladder:
    """The rungs of a trial."""
    config = opened.configs[trial.outcome.trial]
    every = config.EVALUATION.EVERY
    assert every is not None  # ddpm/comparable.py has asked for it
    steps = every * steps_per_epoch(config.TRAINING, trial.num_train)
    return Ladder(metric=opened.sweep.tune.METRIC, every=steps, total=trial.steps)
