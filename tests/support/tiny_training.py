"""The digits trained in a second: the smallest network, few timesteps, few optimizer steps."""

import json
from pathlib import Path

from ddpm import config as configuration
from ddpm.config.schema import Config
from ddpm.distributed import Group
from ddpm.training import worker
from tests.support.tree import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"
TINY: dict[str, object] = {
    "TRAINING.NETWORK.TIMESTEPS": 60,
    "TRAINING.NETWORK.FIRST_CHANNEL": 8,
    "TRAINING.NETWORK.CHANNEL_MULTIPLIER": "[1]",
    "TRAINING.NETWORK.HAS_ATTENTION": "[true]",
    "TRAINING.NETWORK.NUM_RES_BLOCKS": 1,
    "TRAINING.INLINE_GEN.ENABLE": "false",
    "TRAINING.INLINE_GEN.NUMS": 10,
    "TRAINING.INLINE_GEN.REVERSE_STRIDE": 30,
    "TRAINING.HYPER_PARAMETERS.EPOCHS": 4,
    "TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH": 2,
    "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS": 0,
    "TRAINING.HYPER_PARAMETERS.BATCH_SIZE": 16,
    "EVALUATION.NUM": 8,
    "IMAGE_GENERATION.NUM_STEPS": 2,
    "WANDB.MODE": "disabled",
}


def overrides(*more: str, **changed: object) -> list[str]:
    """KEY=VALUE of TINY; more replace those of the same key."""
    keys = {key: f"{key}={value}" for key, value in (TINY | changed).items()}
    return [*(keys | {text.partition("=")[0]: text for text in more}).values()]


def tiny(*more: str) -> Config:
    """digits.yaml made tiny."""
    return configuration.load(DIGITS, overrides(*more))


def job_of(folder: Path, digits: Path, *more: str) -> worker.TrainingJob:
    """Its training in `folder`/run, of the packed digits."""
    return worker.TrainingJob(
        config=configuration.to_dict(tiny(*more)),
        run_dir=str(folder / "run"),
        data_dir=str(digits),
        threads=1,
        command=("test",),
    )


def run(folder: Path, digits: Path, *more: str) -> Path:
    """The directory of its finished run, trained in this process."""
    worker.work(job_of(folder, digits, *more), Group())
    return folder / "run"


def rows(path: Path) -> list[dict[str, float]]:
    """The metrics of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
