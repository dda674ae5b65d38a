"""Requests for images: options against the trained network, base images, YAML files, guides."""

from pathlib import Path

import numpy as np
import pytest

from ddpm import config as configuration
from ddpm.errors import InputError
from ddpm.sampling.generation import ImageGenerator
from ddpm.sampling.request import BulkOptions, read_request
from tests.support.small_run import images_of, make_config, make_run, overrides, save

GUIDED = {"GEN_TASK": "class_cond", "GUIDANCE": 2.0}


def problems(source: Path, *words: str, ema: float | None = None, **keys: object) -> str:
    """Refusals, a line each."""
    with pytest.raises(InputError) as caught:
        read_request(source, [*words, *overrides(**keys)], ema=ema)
    return "\n".join(caught.value.problems)


def test_all_problems_are_told_at_once_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = sorted(run.rglob("*"))
    keys = overrides(
        GEN_TASK="channel_inpaint",
        FREEZE_CHANNEL=0,
        EXTERNAL_NPZ_INPUT=tmp_path / "none.npz",
        GEN_SAVE_DIR=tmp_path / "file",
    )
    with pytest.raises(InputError) as caught:
        read_request(run, [*keys, "TRAINING.SEED=3"], ema=0.5, batch_size=0)
    for words in (
        "TRAINING.SEED: the run is trained, and only IMAGE_GENERATION keys choose its images",
        "has the EMA decays 0.9, 0.99, or 0 for none",
        "--batch-size is 0; give at least 1",
        "none.npz, which is no file",
        "GEN_SAVE_DIR is ",
    ):
        assert words in str(caught.value)
    assert len(caught.value.problems) == 5 and "--ema 0.5: " in str(caught.value)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("CLASS_LABEL=3", "CLASS_LABEL 3 is no class"),
        ("REVERSE_STRIDE=13", "REVERSE_STRIDE is 13 but TRAINING.NETWORK.TIMESTEPS is 12"),
        ("NUM_GEN_IMAGES=0", "NUM_GEN_IMAGES"),
        ("DDIM_ETA=1.5", "DDIM_ETA"),
        ("NUM_GEN_IMAGE=3", "NUM_GEN_IMAGES"),
        ("GEN_TASK=channel_inpaint", "FREEZE_CHANNEL is null"),
        ("NEW_IMAGE_SIZE=1", "NEW_IMAGE_SIZE"),
        ("GUIDANCE=2", "GUIDANCE is 2.0 but GEN_TASK random_uncond draws without classes"),
    ],
)
def test_options_are_checked_against_the_trained_network(
    run: Path, override: str, words: str
) -> None:
    assert words in problems(run, f"IMAGE_GENERATION.{override}")


@pytest.mark.slow
def test_a_network_without_classes_draws_none_and_is_guided_by_a_guide_alone(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, NUM_CLASSES=None)
    words = "GEN_TASK is class_cond but TRAINING.NETWORK.NUM_CLASSES is null"
    assert words in problems(run, GEN_TASK="class_cond")
    assert "nothing to guide" in problems(run, GUIDANCE=2.0)
    request = read_request(run, overrides(GUIDANCE=2.0, GUIDE="model"))
    assert ImageGenerator(request).draw().shape == (5, 8, 8, 3)


# Base images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"has shape (2, 8, 8, 1); give (N, 8, 8, 3)"),
        (np.zeros((2, 8, 8, 3), np.int64), "is int64; give floats in [0, 1] or bytes"),
        (np.full((2, 8, 8, 3), -0.5), "reaches from -0.5 to -0.5; give values in [0, 1]"),
        (np.full((2, 8, 8, 3), np.nan), "reaches from nan to nan"),
        (np.array([object()]), "Python objects"),
    ],
    ids=["shape", "type", "range", "nan", "objects"],
)
def test_base_images_must_fit(run: Path, tmp_path: Path, images: np.ndarray, words: str) -> None:
    path = save(tmp_path / "base.npz", images=images)
    found = problems(
        run, GEN_TASK="channel_inpaint", EXTERNAL_NPZ_INPUT=path, FREEZE_CHANNEL=0
    ).splitlines()
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize("damage", ["cut", "no zip", "no images"])
def test_a_damaged_file_of_base_images_is_named(run: Path, tmp_path: Path, damage: str) -> None:
    base = np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)
    path = save(tmp_path / "base.npz", images=base)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "no zip":
        path.write_bytes(b"nothing")
    else:
        save(path, pixels=base)
    found = problems(
        run, GEN_TASK="channel_inpaint", EXTERNAL_NPZ_INPUT=path, FREEZE_CHANNEL=0
    ).splitlines()
    assert len(found) == 1 and str(path) in found[0]


# A YAML in place of a run


def test_a_yaml_names_its_run_and_brings_its_own_options(run: Path, tmp_path: Path) -> None:
    plain = configuration.to_dict(make_config(tmp_path))
    section = {"MODEL_PATH": str(run), "NUM_GEN_IMAGES": 2, "GEN_SAVE_DIR": str(tmp_path / "out")}
    plain["IMAGE_GENERATION"] = {**section, "NUM_STEPS": 3}
    path = tmp_path / "v3.yaml"
    path.write_text(configuration.to_yaml(configuration.from_dict(plain)))
    request = read_request(path, ["IMAGE_GENERATION.RANDOM_SEED=4"])
    assert (request.run, request.options.NUM_GEN_IMAGES, request.seed) == (run, 2, 4)
    assert len(images_of(ImageGenerator(request).run())) == 2

    plain["IMAGE_GENERATION"] = {}
    path.write_text(configuration.to_yaml(configuration.from_dict(plain)))
    assert "MODEL_PATH is empty; name a run or a checkpoint" in problems(path)


V3 = """
TRAINING:
  NETWORK:
    NUM_CLASSES: null   # of another network: only what is to be drawn counts here
IMAGE_GENERATION:
  MODEL_PATH: "{run}"
  GEN_TASK: {task}
  NUM_GEN_IMAGES: 4
  EXTERNAL_NPZ_INPUT: "{base}"
  CLASS_LABEL: [0, 2]
  FREEZE_CHANNEL: 1
  REVERSE_STRIDE: 5
  DDIM_ETA: 1.0
  EXPORT_INTERM: false
  GEN_SAVE_DIR: "{out}"
  RANDOM_SEED: null
  CLIP_DENOISE: false
  NEW_IMAGE_SIZE: null
"""


@pytest.mark.slow
@pytest.mark.parametrize("task", ["random_uncond", "class_cond", "channel_inpaint"])
def test_the_tasks_of_v3_run_from_its_section_unchanged(
    run: Path, tmp_path: Path, task: str
) -> None:
    base = np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)
    npz, path = save(tmp_path / "base.npz", images=base), tmp_path / "v3.yaml"
    path.write_text(V3.format(run=run, task=task, base=npz, out=tmp_path / "out"))
    done = ImageGenerator(read_request(path)).run()
    assert done.images.name == "ddim_eta1.0_rev5_gen_4x8x8x3.npz"
    known = (base[np.arange(4) % 3][..., 1] * 255).round().astype(np.uint8)
    assert (images_of(done)[..., 1] == known).all() == (task == "channel_inpaint")


# Guides


@pytest.mark.parametrize(
    ("guide", "ema", "words"),
    [
        ("nowhere", None, "GUIDE is nowhere: nowhere is no folder; name a run directory or a"),
        ("0.5", None, "GUIDE is 0.5 with the EMA decay 0.5; give one of 0.9, 0.99, or `model`"),
        ("0.9", None, "GUIDE is 0.9, the weights drawn from themselves; give others, or null"),
        ("model", 0, "GUIDE is model, the weights drawn from themselves"),
    ],
)
def test_a_guide_that_is_none_is_refused(
    run: Path, guide: str, ema: float | None, words: str
) -> None:
    assert words in problems(run, ema=ema, **GUIDED, GUIDE=guide)


@pytest.mark.slow
def test_a_guide_of_another_network_schedule_or_prediction_is_refused(
    run: Path, tmp_path: Path
) -> None:
    training = {"PRED_TYPE": "image", "SEED": 4}
    other = make_run(tmp_path, training, TIMESTEPS=20, FIRST_CHANNEL=16)
    found = problems(run, **GUIDED, GUIDE=other).splitlines()
    assert len(found) == 3
    assert all("the same network and noise schedule" in line for line in found)
    for change in ("PRED_TYPE: ", "TIMESTEPS: 12 -> 20", "FIRST_CHANNEL: 8 -> 16"):
        assert any(change in line for line in found)


@pytest.mark.slow
def test_a_file_for_an_evaluator_of_three_channels_needs_three(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"INPUT_IMAGE_CHANNEL": 1})
    assert read_request(run, bulk=BulkOptions(num=5, format="npz")).bulk is not None
    with pytest.raises(InputError, match="--format is adm, .* these images have 1"):
        read_request(run, bulk=BulkOptions(num=5, format="adm"))
    with pytest.raises(InputError, match="--format is png, which holds bytes"):
        read_request(run, overrides(PIXELS="float"), bulk=BulkOptions(num=5, format="png"))
