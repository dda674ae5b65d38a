"""ddpm.config.identity: round trips, run ids, and the words for network, schedule and folders."""

import hashlib
from pathlib import Path

import pytest

from ddpm import config as c
from ddpm.config.schema import Config, is_machine, keys_under
from tests.support.tree import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL = {"DATASET": {"NAME": "tiny", "PATH": "digits"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "test.yaml"
    path.write_text(text)
    return path


def small(*overrides: str) -> Config:
    """The smallest configuration with overrides."""
    return c.load(ROOT / "configs" / "digits.yaml", overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_file_survives_dict_and_yaml(path: Path, tmp_path: Path) -> None:
    config = c.load(path)
    assert c.from_dict(c.to_dict(config)) == config
    assert c.load(write(tmp_path, c.to_yaml(config))) == config


def test_a_square_given_twice_is_the_square_given_once() -> None:
    assert small("TRAINING.INPUT_IMAGE_SIZE=[8, 8]") == small()


MACHINE = {
    "TRAINING.OUTPUT_DIR": "elsewhere",
    "TRAINING.PROFILE": 3,
    "TRAINING.CHECKPOINTS_KEEP": 7,
    "DATASET.PATH": "other.npz",
    "DATASET.CACHE": "off",
    "DATASET.STAGE": "/tmp",
    "EVALUATION.WEIGHTS": "inception.safetensors",
    "CLUSTER.NUM_WORKERS": 2,
    "CLUSTER.CPUS_PER_WORKER": 2,
    "CLUSTER.GPUS_PER_WORKER": 0.5,
    "WANDB.MODE": "online",
    "WANDB.SYSTEM": True,
    "WANDB.ARTIFACTS": True,
    "WANDB.PROJECT": "other",
    "WANDB.ENTITY": "me",
    "WANDB.TAGS": "[a]",
}


def test_machine_keys_are_exactly_these_and_leave_the_run_itself() -> None:
    assert {k for k, field in keys_under(Config).items() if is_machine(field)} == set(MACHINE)
    moved = small(*(f"{key}={value}" for key, value in MACHINE.items()))
    assert c.run_id(moved, "data") == c.run_id(small(), "data")
    assert c.config_sha256(moved) == c.config_sha256(small())
    assert len(c.difference(small(), moved)) == len(MACHINE)


def test_every_other_key_and_the_data_make_another_run() -> None:
    ids = {c.run_id(small(), "data"), c.run_id(small(), "other data")}
    changes = [
        "TRAINING.SEED=1",
        "EVALUATION.NUM=8",
        "TRAINING.NETWORK.TIMESTEPS=999",
        "TRAINING.EMA_DECAYS=[0.99, 0.9]",
    ]
    ids |= {c.run_id(small(change), "data") for change in changes}
    assert len(ids) == 2 + len(changes)
    assert all(len(each) == 8 and int(each, 16) >= 0 for each in ids)


def test_the_identity_is_a_fixed_function_of_the_configuration() -> None:
    config = c.from_dict({**SMALL, "TRAINING": {"HYPER_PARAMETERS": {"LEARNING_RATE": 1e-4}}})
    assert c.identifying(config) == {
        "DATASET.NAME": "tiny",
        "TRAINING.HYPER_PARAMETERS.LEARNING_RATE": 0.0001,
    }
    record = '{"config":{"DATASET.NAME":"tiny","TRAINING.HYPER_PARAMETERS.LEARNING_RATE":0.0001}'
    digest = hashlib.sha256(f'{record},"data":"{"0" * 64}"}}'.encode()).hexdigest()
    # Run directories are found again by this number: it must never change.
    assert c.run_id(config, "0" * 64) == digest[:8] == "aefded13"


def test_a_value_spelt_out_at_its_default_changes_no_identity() -> None:
    config = c.from_dict({**SMALL, "TRAINING": {"WEIGHT_DECAY": 0, "CLIP_NORM": 1}})
    assert c.run_id(config, "d") == c.run_id(c.from_dict(SMALL), "d")


def test_a_difference_is_one_line_a_key() -> None:
    changed = small("TRAINING.SEED=1", "TRAINING.NETWORK.CHANNEL_MULTIPLIER=[1, 4]")
    assert c.difference(small(), changed) == [
        "TRAINING.SEED: 0 -> 1",
        "TRAINING.NETWORK.CHANNEL_MULTIPLIER: [1, 2] -> [1, 4]",
    ]
    assert c.difference(small(), small()) == []


def test_architecture_tags_are_short_folder_names_that_tell_networks_apart() -> None:
    changes = ["FIRST_CHANNEL=24", "HAS_ATTENTION=[true, true]", "NUM_RES_BLOCKS=1", "BLOCK_SIZE=2",
               "NORM_GROUPS=4", "NUM_HEADS=2", "TIME_EMB_DIM=64", "DROPOUT_RATE=0.3",
               "KERNEL_SIZE=5", "USE_CROSS_ATTENTION=true", "NUM_CLASSES=11", "CLASS_EMB_DIM=8",
               "CHANNEL_MULTIPLIER=[1, 3]"]  # fmt: skip
    tags = {c.architecture_tag(small(f"TRAINING.NETWORK.{change}")) for change in changes}
    tags.add(c.architecture_tag(small()))
    assert len(tags) == len(changes) + 1
    assert all(
        len(tag) < 100 and set(tag) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        for tag in tags
    )
    # What does not change the network does not move its runs.
    assert c.architecture_tag(small("TRAINING.NETWORK.TIMESTEPS=50")) == c.architecture_tag(small())


def test_sampling_steps_default_to_fifty_but_no_more_than_there_are() -> None:
    config = small("IMAGE_GENERATION.NUM_STEPS=null")
    assert c.sampling_steps(config.IMAGE_GENERATION, 1000) == {"num_steps": 50}
    assert c.sampling_steps(config.TRAINING.INLINE_GEN, 20) == {"num_steps": 20}
    assert c.sampling_steps(small("IMAGE_GENERATION.NUM_STEPS=7").IMAGE_GENERATION, 10) == {
        "num_steps": 7
    }
    strided = small("TRAINING.INLINE_GEN.REVERSE_STRIDE=10").TRAINING.INLINE_GEN
    assert c.sampling_steps(strided, 1000) == {"reverse_stride": 10}


def test_inpainting_asks_for_its_input_only_when_images_are_drawn() -> None:
    assert c.generation_problems(small()) == []
    lines = c.generation_problems(small("IMAGE_GENERATION.GEN_TASK=channel_inpaint"))
    assert [line.split(" but ")[1].split()[0] for line in lines] == [
        "EXTERNAL_NPZ_INPUT",
        "FREEZE_CHANNEL",
    ]
