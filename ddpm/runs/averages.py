"""Power-function averages of a training, kept as it goes on: what any EMA length is made from.

    ema_snapshots/step-00001000/     power-0.05.safetensors  power-0.1.safetensors  state.json
                                     MANIFEST.json                      as in a checkpoint

One a SAVE_PERIOD and one at the end, none where a training was merely interrupted; a resumed run
drops those after its checkpoint, so that they are the same whatever happened between. Retention
of checkpoints does not touch them: each takes 4 bytes a parameter and tracked length, for good.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ddpm.config import Config
from ddpm.diffusion import Snapshot, fit_profile, power_ema_name, reconstruct_average
from ddpm.errors import InputError
from ddpm.runs import checkpoint, storage
from ddpm.runs.checkpoint import Checkpoint, folder_of, read_manifest, steps

FOLDER = "ema_snapshots"
# Share of a profile that its snapshots may miss: with more it is another average.
MAX_PROFILE_ERROR = 0.1


def keep_if_due(
    run: Path,
    config: Config,
    step: int,
    total_steps: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    manifest: Mapping[str, Any],
) -> None:
    """Keeps the power-function averages of a state at the end of a SAVE_PERIOD or of the training.

    Does nothing without EMA_POWER.  A snapshot that is there stays.
    """
    if not config.TRAINING.EMA_POWER:
        return
    hyper = config.TRAINING.HYPER_PARAMETERS
    period = (hyper.SAVE_PERIOD or hyper.EPOCHS) * (total_steps // hyper.EPOCHS)
    if step != total_steps and step % period:
        return
    folder = run / FOLDER
    storage.make_folder(folder)
    checkpoint.save(
        folder_of(folder, step),
        tensors={name: tensors[name] for name in _names(config)},
        state={"step": step},
        manifest=manifest,
    )


def forget_after(run: Path, step: int) -> None:
    """Removes the snapshots after `step`, and what a kill left half written."""
    folder = run / FOLDER
    if not folder.is_dir():
        return
    storage.clean_temporaries(folder)
    for later in steps(folder):
        if later > step:
            storage.remove(folder_of(folder, later))


def snapshots(
    run: Path, config: Config, step: int, own: Checkpoint | None = None
) -> list[Snapshot]:
    """All tracked averages up to `step`, which is that of a checkpoint and has averages in it.

    own: that checkpoint, read, where snapshots are to be loaded: its averages are its own.
    """
    found = []
    for sigma_rel in config.TRAINING.EMA_POWER:
        name = power_ema_name(sigma_rel)
        for earlier in _before(run, step):
            load = partial(_load, folder_of(run / FOLDER, earlier), name)
            found.append(Snapshot(step=earlier, sigma_rel=sigma_rel, load=load))
        last = partial(_of, own, name)
        found.append(Snapshot(step=step, sigma_rel=sigma_rel, load=last))
    return found


def averaged(run: Path, config: Config, own: Checkpoint, sigma_rel: float) -> dict[str, Tensor]:
    """The average of this length at the checkpoint `own`, made from the snapshots of its run.

    Raises InputError where the run has none, or none that come near enough.
    """
    if not config.TRAINING.EMA_POWER:
        raise InputError(f"{run} was trained without TRAINING.EMA_POWER, so it has no snapshots")
    there = snapshots(run, config, own.step, own)
    error = fit_profile(there, sigma_rel, own.step).error
    if error > MAX_PROFILE_ERROR:
        tracked = ", ".join(f"{one:g}" for one in config.TRAINING.EMA_POWER)
        raise InputError(
            f"an average of length {sigma_rel:g} cannot be made from the {len(there)} snapshots of "
            f"{run}: {error:.0%} of its profile is missing, at most {MAX_PROFILE_ERROR:.0%} may "
            f"be; ask for one nearer those tracked ({tracked}), or train with a shorter SAVE_PERIOD"
        )
    return reconstruct_average(there, sigma_rel, own.step)


def identity(run: Path, config: Config, own: Checkpoint, sigma_rel: float) -> str:
    """SHA-256 of all that an average made afterwards comes from: the length and the snapshots."""
    names = _names(config)
    files = [
        own.manifest["files"],
        *(read_manifest(folder_of(run / FOLDER, step))["files"] for step in _before(run, own.step)),
    ]
    hashes = [[each[f"{name}.safetensors"]["sha256"] for name in names] for each in files]
    return hashlib.sha256(json.dumps([sigma_rel, own.step, hashes]).encode()).hexdigest()


def _before(run: Path, step: int) -> list[int]:
    return [each for each in steps(run / FOLDER) if each < step]


def _of(own: Checkpoint | None, name: str) -> dict[str, Tensor]:
    assert own is not None  # only fits are asked of snapshots without it
    return own.tensors[name]


def _load(folder: Path, name: str) -> dict[str, Tensor]:
    return checkpoint.load(folder, (name,)).tensors[name]


def _names(config: Config) -> list[str]:
    return [power_ema_name(sigma_rel) for sigma_rel in config.TRAINING.EMA_POWER]
