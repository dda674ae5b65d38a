"""Which trained weights are meant: of which run or checkpoint, averaged or not. No torch."""

from pathlib import Path

from ddpm.config import Config
from ddpm.errors import InputError

CONFIG_FILE = "training_config.yaml"
RAW = "model"
_KERAS = (".h5", ".hdf5", ".keras")


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


def weights_name(config: Config, ema: float | None) -> str:
    """The part of a checkpoint that holds the weights: "ema-0.999", or "model" for ema 0."""
    if ema == 0:
        return RAW
    return f"ema-{config.TRAINING.EMA_DECAYS[0] if ema is None else ema:g}"


def guide_weights(guide: str, ema: float | None) -> tuple[Path | None, float | None]:
    """GUIDE as arguments of load_network: where, None for the checkpoint drawn from, and which."""
    if guide.lower() == RAW:
        return None, 0.0
    try:
        return None, float(guide)
    except ValueError:
        return Path(guide), ema
