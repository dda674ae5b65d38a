"""Where a run's directory lies, what it is called, and what the files in it are called.

    OUTPUT_DIR/{dataset}_{H}x{W}x{C}/{architecture_tag}/
        {scheduler}_{timesteps}_{pred_type}_{loss}_{timestamp}_{run_id}

The run_id finds a run again; the timestamp is for people, nothing is ordered by it.
OUTPUT_DIR/.locks/{run_id} is held by the process that makes the first directory of a run.
"""

from datetime import datetime
from pathlib import Path

from ddpm import config as configuration
from ddpm.config import Config

CONFIG = "training_config.yaml"
PROVENANCE = "provenance.json"
METRICS = "metrics.jsonl"
MEMORY = "memory.csv"
DONE = "DONE.json"
STOP = "STOP"
LOCK = ".lock"
LINEAGE = "lineage.json"


def existing(root: Path, run_id: str) -> list[Path]:
    """The directories of the runs called `run_id` below OUTPUT_DIR, in no particular order."""
    return [path for path in root.glob(f"*/*/*_{run_id}") if path.is_dir()]


def id_lock(path: Path) -> Path:
    """The lock file of the run id of a run directory."""
    return output_dir(path) / ".locks" / id_of(path)


def id_of(path: Path) -> str:
    """The run id in the name of a run directory."""
    return path.name.rpartition("_")[2]


def output_dir(path: Path) -> Path:
    """The OUTPUT_DIR of a run directory."""
    return path.parent.parent.parent


def new_path(config: Config, run_id: str) -> Path:
    """A directory that no run has yet."""
    channels, height, width = configuration.image_shape(config)
    training = config.TRAINING
    network = training.NETWORK
    parts = (network.SCHEDULER, network.TIMESTEPS, training.PRED_TYPE, training.LOSS_FN)
    # microseconds, so that two names made in one second differ
    timestamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return (
        Path(training.OUTPUT_DIR)
        / f"{config.DATASET.NAME}_{height}x{width}x{channels}"
        / configuration.architecture_tag(config)
        / "_".join((*map(str, parts), timestamp, run_id))
    )
