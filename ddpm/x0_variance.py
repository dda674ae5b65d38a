"""How uncertain x0 is at a noise level: Var(x0 | x_t), as a run's evaluation measured it.

The mean squared error of x0_hat, by level of log SNR, is the variance of x0 given x_t where the
network is ideal, and above it elsewhere. Between levels its logarithm is linear in logsnr; outside
them it is held constant.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import InputError

FILE = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class X0Variance:
    """levels: log SNRs, ascending.  mse: of an element of x0_hat in [-1, 1], positive, at each."""

    levels: tuple[float, ...]
    mse: tuple[float, ...]

    def __call__(self, logsnr: float) -> float:
        """The variance of an element of x0 at this logsnr."""
        levels, mse = self.levels, self.mse
        if logsnr <= levels[0]:
            return mse[0]
        for i in range(1, len(levels)):
            if logsnr <= levels[i]:
                share = (logsnr - levels[i - 1]) / (levels[i] - levels[i - 1])
                return math.exp((1 - share) * math.log(mse[i - 1]) + share * math.log(mse[i]))
        return mse[-1]


def read_x0_variance(run: Path) -> X0Variance:
    """That of a run's averaged network.  Raises InputError where it was not measured."""
    path = run / FILE
    if not path.is_file():
        raise InputError(
            f"IMAGE_GENERATION.SAMPLER is analytic but {path} is not there, whose errors it needs; "
            f"finish the training (python launch/train.py {run / 'training_config.yaml'}), which "
            "evaluates where there are validation images, or give another SAMPLER"
        )
    try:
        facts = json.loads(path.read_text())
        found = {
            float(level): float(mse)
            for level, mse in zip(facts["levels"], facts["mse"], strict=True)
            if mse is not None and mse > 0
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error!r}; evaluate the run again") from None
    if not found:
        raise InputError(
            f"IMAGE_GENERATION.SAMPLER is analytic but {path} has no error that is finite and "
            "above 0; give another SAMPLER"
        )
    levels = tuple(sorted(found))
    return X0Variance(levels=levels, mse=tuple(found[level] for level in levels))
