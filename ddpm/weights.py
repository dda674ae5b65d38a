"""Which trained weights are meant: of which run or checkpoint, averaged or not. No torch.

An average is named by its decay (0: unaveraged), or power:LENGTH, made afterwards from snapshots.
"""

from dataclasses import dataclass
from pathlib import Path

from ddpm.config import Config
from ddpm.ema_profile import gamma_of, name_of
from ddpm.errors import InputError

CONFIG_FILE = "training_config.yaml"
RAW = "model"
_POWER = "power:"
_KERAS = (".h5", ".hdf5", ".keras")


@dataclass(frozen=True)
class PowerEma:
    """The average of this length, made from a run's snapshots; ema_profile.py."""

    sigma_rel: float

    def __str__(self) -> str:
        return f"{_POWER}{self.sigma_rel:g}"


Ema = float | PowerEma


def parse_ema(text: str) -> Ema:
    """A decay, or "power:0.07".  InputError for anything else, and for impossible lengths."""
    is_power = text.lower().startswith(_POWER)
    number = text[len(_POWER) :] if is_power else text
    try:
        # as many digits as its name has
        value = float(f"{float(number):g}") if is_power else float(number)
        if is_power:
            gamma_of(value)
    except ValueError as error:
        why = f": {error}" if is_power and "sigma_rel" in str(error) else ""
        raise InputError(
            f"EMA {text}{why}; give a decay such as 0.999, 0 for none, or a length such as "
            f"{_POWER}0.07"
        ) from None
    return PowerEma(value) if is_power else value


def ema_of(name: str) -> Ema:
    """Which weights the part of a checkpoint called `name` holds: the inverse of weights_name."""
    if name == RAW:
        return 0.0
    kind, _, number = name.partition("-")
    return PowerEma(float(number)) if kind == "power" else float(number)


def ema_problem(config: Config, ema: Ema | None) -> str | None:
    """Why a run of this configuration has no such weights; None where it has."""
    training = config.TRAINING
    if isinstance(ema, PowerEma):
        return None if training.EMA_POWER else "was trained without TRAINING.EMA_POWER"
    if ema in (None, 0, *training.EMA_DECAYS):
        return None
    there = ", ".join(f"{decay:g}" for decay in training.EMA_DECAYS)
    return f"has the EMA decays {there}, or 0 for none"


def locate(source: Path) -> tuple[Path, Path | None]:
    """The run directory of `source`, and the checkpoint when `source` is one and no run."""
    if source.suffix in _KERAS:
        raise InputError(
            f"{source} is a Keras file, which cannot be read; "
            "name a run directory or a checkpoint of this project"
        )
    if not source.is_dir():
        raise InputError(f"{source} is no folder; name a run directory or a checkpoint")
    if (source / CONFIG_FILE).is_file():
        return source, None
    run = source.resolve().parent.parent
    if source.resolve().parent.name == "checkpoints" and (run / CONFIG_FILE).is_file():
        return run, source
    raise InputError(
        f"{source} is no run directory, which has a {CONFIG_FILE}, and no checkpoint of one"
    )


def weights_name(config: Config, ema: Ema | None) -> str:
    """The part of a checkpoint that holds the weights: "ema-0.999", or "model" for ema 0.

    "power-0.07" for an average that is made afterwards, whether it was tracked or not.
    """
    if ema == 0:
        return RAW
    if isinstance(ema, PowerEma):
        return name_of(ema.sigma_rel)
    return f"ema-{config.TRAINING.EMA_DECAYS[0] if ema is None else ema:g}"


def guide_weights(guide: str, ema: Ema | None) -> tuple[Path | None, Ema | None]:
    """GUIDE as arguments of load_network: where, None for the checkpoint drawn from, and which."""
    if guide.lower() == RAW:
        return None, 0.0
    if guide.lower().startswith(_POWER):
        return None, parse_ema(guide)
    try:
        return None, float(guide)
    except ValueError:
        return Path(guide), ema
