"""The configuration a run was trained with, which its checkpoints confirm. No torch.

Every manifest holds the SHA-256 of the configuration's identity: the keys that differ from their
defaults. Lay-out, machine keys and keys added to the project later do not change it. An edited
training_config.yaml does, and would silently draw other images than the network was trained for.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ddpm import config as configuration
from ddpm import durable, manifest
from ddpm.config import Config
from ddpm.errors import InputError, StorageError
from ddpm.run_names import CONFIG, LINEAGE


def load_run(run: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration of the run in the directory `run`, `overrides` put over it once compared.

    Raises InputError as config.load does, StorageError where the file was edited.
    """
    own = configuration.load(run / CONFIG)
    if newest := _newest_manifest(run):
        refuse_edited(run, own, newest)
    return configuration.load(run / CONFIG, overrides) if overrides else own


def load_file(path: Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, as load_run's where it is that of a run."""
    if path.name == CONFIG:
        return load_run(path.parent, overrides)
    return configuration.load(path, overrides)


def refuse_edited(run: Path, own: Config, made: Mapping[str, Any]) -> None:
    """Raises StorageError when `own`, read from the run, is not what the checkpoint with the
    manifest `made` was trained with.
    """
    known, found = made.get("config_sha256"), configuration.config_sha256(own)
    if known is None or known == found or made["step"] == _given_step(run):
        return
    raise StorageError(
        f"{run / CONFIG} was edited: its configuration is {found[:8]}, but "
        f"{manifest.folder_name(made['step'])} was trained with {known[:8]}; undo the edit or "
        "restore the file from a copy; for other settings train a new run, or give "
        "IMAGE_GENERATION.KEY=value where images are drawn"
    )


def _newest_manifest(run: Path) -> dict[str, Any] | None:
    """The newest that can be read; None where there is none, so nothing to compare with."""
    folder = run / "checkpoints"
    for step in reversed(manifest.steps(folder)):
        try:
            return manifest.read_manifest(manifest.folder_of(folder, step))
        except (StorageError, InputError):
            continue  # whoever wants the weights is told; one before it knows as well
    return None


def _given_step(run: Path) -> int | None:
    """The step a member of a population took over from another, of another configuration."""
    step: int | None = durable.read_json(run / LINEAGE).get("step")
    return step
