"""Layout of a run directory: its path, the names of its files, the configuration in it. No torch.

    OUTPUT_DIR/{dataset}_{H}x{W}x{C}/{architecture_tag}/
        {scheduler}_{timesteps}_{pred_type}_{loss}_{timestamp}_{run_id}

The run_id finds a run again; the timestamp is for people, nothing is ordered by it.
OUTPUT_DIR/.locks/{run_id} is held by the process that makes the first directory of a run.

Every checkpoint's manifest holds the SHA-256 of the configuration's identity: the keys that differ
from their defaults. Lay-out, machine keys and keys added to the project later do not change it. An
edited training_config.yaml does, and would silently draw other images than the network was trained
for.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm import config as configuration
from ddpm.config import Config, Training
from ddpm.errors import InputError, StorageError, as_typed
from ddpm.runs import checkpoint

CONFIG_FILE = "training_config.yaml"
PROVENANCE_FILE = "provenance.json"
MEMORY_FILE = "memory.csv"
EVALUATION_FILE = "evaluation.json"  # the last evaluation of x0-error
DONE_FILE = "DONE.json"
STOP_FILE = "STOP"
LOCK_FILE = ".lock"
_SHORT = re.compile(r"latest|[0-9a-f]{3,8}")
_RUN_ID = re.compile(r"[0-9a-f]{8}")


def find_run(text: str) -> Path:
    """The path that a command line names, or the run of a short name where no such path is:
    `latest` or the first digits of a run id, of training_outputs or of an OUTPUT_DIR (`out/3f2`).

    latest: the run that was started last. Raises InputError where there is none, or several.
    """
    path = Path(text)
    if path.exists() or not _SHORT.fullmatch(path.name):
        return path
    output = path.parent if len(path.parts) > 1 else Path(Training().OUTPUT_DIR)
    digits = "" if path.name == "latest" else path.name
    found = [p for p in output.glob(f"*/*/*_{digits}*") if _RUN_ID.fullmatch(id_of(p))]
    found = [p for p in found if id_of(p).startswith(digits) and (p / PROVENANCE_FILE).is_file()]
    if not found and not digits:
        raise InputError(f"{text}: {output} holds no run yet; train one, or name a run directory")
    if not found:
        raise InputError(
            f"{text}: no such path, and no run in {output} has such an id; "
            f"`{as_typed('status', output)}` lists them"
        )
    if digits and len({id_of(p) for p in found}) > 1:
        names = "\n".join(map(str, sorted(found)))
        raise InputError(f"{text}: begins the ids of several runs; give more digits:\n{names}")
    return max(found, key=lambda p: (p / PROVENANCE_FILE).stat().st_mtime)


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


def load_run(run: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the run in the directory `run`, `overrides` put over it once compared.

    Raises InputError as config.load does, StorageError where the file was edited.
    """
    own = configuration.load(run / CONFIG_FILE)
    if newest := _newest_manifest(run):
        refuse_edited(run, own, newest)
    return configuration.load(run / CONFIG_FILE, overrides) if overrides else own


def load_file(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, as load_run's where it is that of a run."""
    if path.name == CONFIG_FILE:
        return load_run(path.parent, overrides)
    return configuration.load(path, overrides)


def refuse_edited(run: Path, own: Config, made: Mapping[str, Any]) -> None:
    """Raises StorageError when `own`, read from the run, is not what the checkpoint with the
    manifest `made` was trained with.
    """
    known, found = made.get("config_sha256"), configuration.config_sha256(own)
    if known is None or known == found:
        return
    raise StorageError(
        f"{run / CONFIG_FILE} was edited: its configuration is {found[:8]}, but "
        f"{checkpoint.folder_name(made['step'])} was trained with {known[:8]}; undo the edit or "
        "restore the file from a copy; for other settings train a new run, or give "
        "IMAGE_GENERATION.KEY=value where images are drawn"
    )


def _newest_manifest(run: Path) -> dict[str, Any] | None:
    """The newest that can be read; None where there is none, so nothing to compare with."""
    folder = run / "checkpoints"
    for step in reversed(checkpoint.steps(folder)):
        try:
            return checkpoint.read_manifest(checkpoint.folder_of(folder, step))
        except (StorageError, InputError):
            continue  # loading its weights will say so; the one before it knows as well
    return None
