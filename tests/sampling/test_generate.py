"""Images from trained networks: which weights, which images, where they go, and what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ddpm import config as configuration
from ddpm.config.schema import Config
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError, NonFiniteError
from ddpm.runs import checkpoint
from ddpm.runs.checkpoint import folder_of
from ddpm.runs.directory import RunDirectory
from ddpm.sampling import generation
from ddpm.sampling.generation import Generated, ImageGenerator
from ddpm.sampling.loading import load_network
from ddpm.sampling.request import read_request
from ddpm.sampling.samplers import SamplerOptions, sample
from ddpm.training.step import TrainState
from ddpm.training.trainer import StepReport
from tests.support.tree import ROOT

STEP = 7


def make_config(
    folder: Path, training: Mapping[str, object] | None = None, **network: object
) -> Config:
    """A configuration of a very small conditional network of 8x8 images with three channels."""
    return configuration.from_dict(
        {
            "DATASET": {"NAME": "made", "PATH": "nowhere"},
            "TRAINING": {
                "INPUT_IMAGE_SIZE": 8,
                "OUTPUT_DIR": str(folder),
                "EMA_DECAYS": [0.9, 0.99],
                "INLINE_GEN": {"NUMS": 7},
                "NETWORK": {
                    "TIMESTEPS": 12,
                    "FIRST_CHANNEL": 8,
                    "CHANNEL_MULTIPLIER": [1, 2],
                    "HAS_ATTENTION": [False, True],
                    "NUM_RES_BLOCKS": 1,
                    "TIME_EMB_DIM": 8,
                    "NUM_CLASSES": 3,
                    **network,
                },
                **(training or {}),
            },
            "IMAGE_GENERATION": {"NUM_GEN_IMAGES": 5, "NUM_STEPS": 4, "DDIM_ETA": 0.0},
        }
    )


def weights(config: Config, seed: int) -> dict[str, Tensor]:
    """Weights that let every layer speak, the zero-initialised ones too."""
    network = UNet(**configuration.network_arguments(config))
    random = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.15 * torch.randn(tensor.shape, generator=random)
        for name, tensor in network.state_dict().items()
    }


def make_run(folder: Path, training: Mapping[str, object] | None = None, **network: object) -> Path:
    """A run directory with one checkpoint, as training leaves it."""
    config = make_config(folder, training, **network)
    run = RunDirectory.find_or_name(config, "0" * 64)
    run.start(config, data_sha256="0" * 64, data_dir=folder, threads=1, command=("train",))
    parts = ("model", "ema-0.9", "ema-0.99")
    tensors = {part: weights(config, seed) for seed, part in enumerate(parts)}
    state = TrainState(step=STEP, tensors=tensors | {"optimizer": {}})
    run.record(StepReport(step=STEP, images=STEP, metrics={}, state=state))
    run.close()
    return run.path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


Draw = Callable[..., Generated]


@pytest.fixture
def draw(run: Path, tmp_path: Path) -> Draw:
    """Draws with IMAGE_GENERATION keys as keyword arguments, into a folder of the test's own."""

    def drawn(batch_size: int = 4, ema: float | None = None, **keys: object) -> Generated:
        keys = {"GEN_SAVE_DIR": tmp_path / "out", **keys}
        overrides = [f"IMAGE_GENERATION.{key}={value}" for key, value in keys.items()]
        request = read_request(run, overrides, ema=ema, batch_size=batch_size)
        return ImageGenerator(request).run(progress=False)

    return drawn


def images_of(generated: Generated) -> np.ndarray:
    with np.load(generated.images, allow_pickle=False) as arrays:
        return arrays["images"]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def problems(source: Path, *overrides: str, **arguments: object) -> tuple[str, ...]:
    with pytest.raises(InputError) as caught:
        read_request(source, overrides, **arguments)  # type: ignore[arg-type]
    return caught.value.problems


# Which weights


@pytest.mark.parametrize(
    ("ema", "name", "seed"), [(None, "ema-0.9", 1), (0.99, "ema-0.99", 2), (0, "model", 0)]
)
def test_the_weights_asked_for_are_loaded(
    run: Path, ema: float | None, name: str, seed: int
) -> None:
    for source in (run, folder_of(run / "checkpoints", STEP)):
        model = load_network(source, ema)
        expected = weights(model.config, seed)
        assert (model.name, model.step, model.network.training) == (name, STEP, False)
        for key, tensor in model.network.state_dict().items():
            assert torch.equal(tensor.cpu(), expected[key]), key


def test_a_damaged_checkpoint_is_passed_over_and_left_as_it_is(tmp_path: Path) -> None:
    path = make_run(tmp_path)
    run = RunDirectory(path)
    config = run.config()
    run.start(config, data_sha256="0" * 64, data_dir=path, threads=1, command=())
    state = TrainState(step=9, tensors={"model": weights(config, 0), "ema-0.9": weights(config, 1)})
    run.record(StepReport(step=9, images=9, metrics={}, state=state))
    run.close()
    assert load_network(path).step == 9
    newest = folder_of(path / "checkpoints", 9)
    data = bytearray((newest / "ema-0.9.safetensors").read_bytes())
    data[-1] ^= 1
    (newest / "ema-0.9.safetensors").write_bytes(data)
    assert load_network(path).step == STEP
    assert newest.is_dir()


def test_what_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    keras = tmp_path / "model.h5"
    keras.touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, words in (
        (tmp_path / "nowhere", "is no folder; name a run directory or a checkpoint"),
        (keras, "a Keras file, which cannot be read"),
        (empty, "is no run directory, which has a training_config.yaml"),
    ):
        with pytest.raises(InputError, match=words):
            load_network(source)
        assert words in problems(source)[0]


def test_a_network_is_loaded_in_the_order_that_is_fastest_to_draw_with(run: Path) -> None:
    """The channels of a pixel side by side; what it predicts is the same up to rounding."""
    network = load_network(run).network
    plain = UNet(**configuration.network_arguments(load_network(run).config)).eval()
    plain.load_state_dict(network.state_dict())
    x_t, time = torch.randn(4, 3, 8, 8), torch.rand(4)
    labels = torch.arange(4) % 3
    with torch.no_grad():
        found, expected = network(x_t, time, labels), plain(x_t, time, labels)
    assert found.is_contiguous(memory_format=torch.channels_last) and not network.training
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    folder = folder_of(run / "checkpoints", STEP)
    made = checkpoint.read_manifest(folder)
    shutil.rmtree(folder)
    wider = weights(make_config(tmp_path, FIRST_CHANNEL=16), 0)
    checkpoint.save(
        folder,
        tensors={"model": wider, "ema-0.9": wider},
        state={"step": STEP},
        manifest={"config_sha256": made["config_sha256"]},
    )
    with pytest.raises(InputError, match="another architecture than .*parameters differ, "):
        load_network(run)


def test_a_run_without_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "training_config.yaml").write_text(configuration.to_yaml(make_config(tmp_path)))
    with pytest.raises(InputError, match="has no checkpoint yet; train it first"):
        load_network(tmp_path)


def test_an_average_that_was_not_kept_is_named_with_those_that_were(run: Path) -> None:
    with pytest.raises(InputError, match=r"has no ema-0\.5; it has the EMA decays 0\.9, 0\.99"):
        load_network(run, 0.5)


# Which images


def test_an_image_depends_on_its_number_and_not_on_how_many_are_drawn(draw: Draw) -> None:
    """Bitwise, over full and part-filled batches."""
    few, many = (images_of(draw(NUM_GEN_IMAGES=count)) for count in (3, 11))
    assert (few == many[:3]).all()
    assert len(np.unique(many.reshape(11, -1), axis=0)) == 11


def test_slots_call_the_network_at_one_batch_size_only(run: Path) -> None:
    model, sizes = load_network(run), []

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        sizes.append(len(x_t))
        return model.network(x_t, time, labels)

    sampler = SamplerOptions(pred_type="velocity", num_steps=3)
    shape = model.image_shape
    generation.draw(network, model.schedule, 7, shape, sampler, batch_size=3)
    assert set(sizes) == {3} and len(sizes) == 9


def test_images_are_those_of_sample(run: Path, draw: Draw) -> None:
    model = load_network(run)
    x0 = sample(
        model.network,
        model.schedule,
        torch.tensor([4]),
        model.image_shape,
        pred_type="velocity",
        num_steps=4,
        labels=torch.tensor([1]),
    )
    drawn = images_of(draw(GEN_TASK="class_cond"))[4].astype(int)
    expected = ((x0[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().to(torch.int64)
    assert np.abs(drawn - expected.numpy()).max() <= 1


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [("null", [0, 1, 2, 0, 1]), ("2", [2, 2, 2, 2, 2]), ("[2,0]", [2, 0, 2, 0, 2])],
)
def test_class_label_chooses_the_class_of_each_image(
    draw: Draw, wanted: str, labels: list[int]
) -> None:
    generated = draw(GEN_TASK="class_cond", CLASS_LABEL=wanted)
    with np.load(generated.images) as arrays:
        assert arrays["labels"].tolist() == labels
    for label in set(labels):
        alone = images_of(draw(GEN_TASK="class_cond", CLASS_LABEL=label))
        where = np.array(labels) == label
        assert (images_of(generated)[where] == alone[where]).all()


def test_random_uncond_is_the_null_class(run: Path, draw: Draw) -> None:
    model = load_network(run)
    null = torch.full((5,), model.network.null_label)
    sampler = SamplerOptions(pred_type="velocity", num_steps=4)
    args = (model.network, model.schedule, 5, model.image_shape, sampler)
    expected = generation.draw(*args, labels=null, batch_size=4)
    generated = draw(CLASS_LABEL=1)
    assert (images_of(generated) == expected).all()
    with np.load(generated.images) as arrays:
        assert arrays.files == ["images"]


@pytest.mark.parametrize(
    "change",
    [
        {"RANDOM_SEED": 1},
        {"NUM_STEPS": 5},
        {"NUM_STEPS": "null", "REVERSE_STRIDE": 5},
        {"DDIM_ETA": 0.5},
        {"SAMPLER": "ddpm", "DDIM_ETA": 1.0},
        {"CLIP_DENOISE": "true"},
        {"GUIDANCE": 2.0},
        {"CLASS_LABEL": 1},
    ],
    ids=lambda change: "-".join(change),
)
def test_every_option_changes_the_images(draw: Draw, change: dict[str, object]) -> None:
    before = images_of(draw(GEN_TASK="class_cond"))
    after = images_of(draw(**{"GEN_TASK": "class_cond", **change}))
    assert before.shape == after.shape and (before != after).any()


def test_the_random_seed_null_is_seed_0(draw: Draw) -> None:
    assert draw(RANDOM_SEED="null").images == draw(RANDOM_SEED=0).images


def test_other_averages_draw_other_images(draw: Draw) -> None:
    drawn = [images_of(draw(ema=ema)) for ema in (None, 0.99, 0)]
    assert (drawn[0] != drawn[1]).any() and (drawn[0] != drawn[2]).any()


def test_a_new_image_size_is_drawn_by_the_same_network(draw: Draw) -> None:
    generated = draw(NEW_IMAGE_SIZE=16, NUM_GEN_IMAGES=2)
    assert images_of(generated).shape == (2, 16, 16, 3)
    assert generated.images.stem.endswith("gen_2x16x16x3")


# channel_inpaint


def save_base(path: Path, images: np.ndarray) -> Path:
    np.savez(path, images=images)
    return path


@pytest.fixture
def base(tmp_path: Path) -> np.ndarray:
    return np.random.default_rng(0).random((3, 8, 8, 3), dtype=np.float32)


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
def test_inpainting_keeps_the_known_channel_to_the_last_bit(
    draw: Draw, base: np.ndarray, tmp_path: Path, kind: str
) -> None:
    pixels = (base * 255).round().astype(np.uint8)
    stored = pixels if kind == "uint8" else (pixels / 255).astype(kind)
    path = save_base(tmp_path / "base.npz", stored)
    drawn = images_of(draw(GEN_TASK="channel_inpaint", EXTERNAL_NPZ_INPUT=path, FREEZE_CHANNEL=1))
    turn = pixels[np.arange(5) % 3]
    assert (drawn[..., 1] == turn[..., 1]).all()
    for channel in (0, 2):
        assert (drawn[..., channel] != turn[..., channel]).mean() > 0.5


def test_the_known_channel_reaches_the_other_channels(
    draw: Draw, base: np.ndarray, tmp_path: Path
) -> None:
    drawn = []
    for name, images in (("a", base), ("b", 1 - base)):
        path = save_base(tmp_path / f"{name}.npz", images)
        keys = {"EXTERNAL_NPZ_INPUT": path, "FREEZE_CHANNEL": 0}
        drawn.append(images_of(draw(GEN_TASK="channel_inpaint", **keys)))
    assert (drawn[0][..., 1:] != drawn[1][..., 1:]).any()


# Where they go


@pytest.mark.parametrize(
    ("keys", "stem"),
    [
        ({}, "ddim_eta0.0_steps4_gen_5x8x8x3"),
        ({"NUM_STEPS": "null"}, "ddim_eta0.0_steps12_gen_5x8x8x3"),
        (
            {"NUM_STEPS": "null", "REVERSE_STRIDE": 5, "DDIM_ETA": 1.0},
            "ddim_eta1.0_rev5_gen_5x8x8x3",
        ),
    ],
)
def test_files_are_named_as_v3_names_them(draw: Draw, keys: dict[str, object], stem: str) -> None:
    generated = draw(**keys)
    assert generated.images.name == f"{stem}.npz"
    assert generated.picture.name == f"{stem}.png"
    assert generated.picture.is_file() and generated.recipe.is_file()


def test_images_go_into_the_run_by_default(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    generated = ImageGenerator(read_request(run)).run(progress=False)
    assert generated.images.parent == run / "generated"


def test_the_same_recipe_is_drawn_once_and_another_overwrites_nothing(draw: Draw) -> None:
    first = draw(RANDOM_SEED=1)
    data, written = first.images.read_bytes(), first.images.stat().st_mtime_ns
    other = draw(RANDOM_SEED=2)
    assert other.images != first.images and other.images.name.startswith(first.images.stem)
    again = draw(RANDOM_SEED=1)
    assert again.was_there and not first.was_there and again.images == first.images
    assert first.images.stat().st_mtime_ns == written
    first.images.unlink()
    assert not draw(RANDOM_SEED=1).was_there
    assert first.images.read_bytes() == data
    assert json.loads(other.recipe.read_text())["sampler"]["seed"] == 2


def test_export_interm_shows_the_way_from_noise_to_image(draw: Draw) -> None:
    assert draw().film is None
    generated = draw(EXPORT_INTERM="true", NUM_STEPS=12, batch_size=5)
    assert generated.film is not None
    film = pixels(generated.film)
    # 5 images in two rows each, ten frames; every 8x8 image is shown as 32x32
    assert film.shape == (2 + 10 * 34, 2 + 10 * 34, 3)
    for index, image in enumerate(images_of(generated)):
        top, left = 2 + 2 * index * 34, 2 + 9 * 34
        last = film[top : top + 32 : 4, left : left + 32 : 4]
        assert (last == image).all()
        assert (film[top + 34 : top + 66 : 4, left : left + 32 : 4] == image).all()
        assert (film[top : top + 32 : 4, 2:34:4] != image).any()


def test_films_are_exported_as_asked(draw: Draw) -> None:
    keys = {"EXPORT_INTERM": "true", "NUM_STEPS": 12, "EXPORT_EVERY": 5}
    strip, film = draw(**keys).film, draw(**keys, EXPORT_FORMAT="gif").film
    assert strip and pixels(strip).shape[1] == 2 + 3 * 34
    assert film and film.suffix == ".gif"
    with Image.open(film) as shown:
        assert shown.n_frames == 3


def test_the_film_changes_no_image(draw: Draw, tmp_path: Path) -> None:
    plain = images_of(draw())
    assert (images_of(draw(EXPORT_INTERM="true")) == plain).all()


# What is refused


def test_all_problems_are_told_at_once_and_nothing_is_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = sorted(run.rglob("*"))
    found = problems(
        run,
        "IMAGE_GENERATION.GEN_TASK=channel_inpaint",
        "IMAGE_GENERATION.FREEZE_CHANNEL=0",
        f"IMAGE_GENERATION.EXTERNAL_NPZ_INPUT={tmp_path / 'none.npz'}",
        f"IMAGE_GENERATION.GEN_SAVE_DIR={tmp_path / 'file'}",
        "TRAINING.SEED=3",
        ema=0.5,
        batch_size=0,
    )
    text = "\n".join(found)
    for words in (
        "TRAINING.SEED: the run is trained, and only IMAGE_GENERATION keys choose its images",
        "--ema 0.5: ",
        "has the EMA decays 0.9, 0.99, or 0 for none",
        "--batch-size is 0; give at least 1",
        "none.npz, which is no file",
        "GEN_SAVE_DIR is ",
    ):
        assert words in text
    assert len(found) == 5
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
    assert words in "\n".join(problems(run, f"IMAGE_GENERATION.{override}"))


def test_an_unconditional_network_draws_no_classes(tmp_path: Path) -> None:
    run = make_run(tmp_path, NUM_CLASSES=None)
    found = problems(run, "IMAGE_GENERATION.GEN_TASK=class_cond")
    assert "GEN_TASK is class_cond but TRAINING.NETWORK.NUM_CLASSES is null" in found[0]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8, 1), np.float32), r"has shape (2, 8, 8, 1); give (N, 8, 8, 3)"),
        (np.zeros((2, 8, 8, 3), np.int64), "is int64; give floats in [0, 1] or bytes"),
        (np.full((2, 8, 8, 3), -0.5), "reaches from -0.5 to -0.5; give values in [0, 1]"),
        (np.full((2, 8, 8, 3), np.nan), "reaches from nan to nan"),
        (np.asfortranarray(np.zeros((2, 8, 8, 3))), "is in Fortran order"),
        (np.array([object()]), "Python objects"),
    ],
    ids=["shape", "type", "range", "nan", "order", "objects"],
)
def test_base_images_must_fit(run: Path, tmp_path: Path, images: np.ndarray, words: str) -> None:
    path = save_base(tmp_path / "base.npz", images)
    keys = {"GEN_TASK": "channel_inpaint", "EXTERNAL_NPZ_INPUT": path, "FREEZE_CHANNEL": 0}
    found = problems(run, *(f"IMAGE_GENERATION.{key}={value}" for key, value in keys.items()))
    assert len(found) == 1 and words in found[0]


@pytest.mark.parametrize("damage", ["cut", "no zip", "no images"])
def test_a_damaged_file_of_base_images_is_named(
    run: Path, tmp_path: Path, base: np.ndarray, damage: str
) -> None:
    path = save_base(tmp_path / "base.npz", base)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-700])
    elif damage == "no zip":
        path.write_bytes(b"nothing")
    else:
        np.savez(path, pixels=base)
    keys = {"GEN_TASK": "channel_inpaint", "EXTERNAL_NPZ_INPUT": path, "FREEZE_CHANNEL": 0}
    found = problems(run, *(f"IMAGE_GENERATION.{key}={value}" for key, value in keys.items()))
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
    assert len(images_of(ImageGenerator(request).run(progress=False))) == 2

    plain["IMAGE_GENERATION"] = {}
    path.write_text(configuration.to_yaml(configuration.from_dict(plain)))
    assert "MODEL_PATH is empty; name a run or a checkpoint" in problems(path)[0]


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


@pytest.mark.parametrize("task", ["random_uncond", "class_cond", "channel_inpaint"])
def test_the_tasks_of_v3_run_from_its_section_unchanged(
    run: Path, base: np.ndarray, tmp_path: Path, task: str
) -> None:
    npz, path = save_base(tmp_path / "base.npz", base), tmp_path / "v3.yaml"
    path.write_text(V3.format(run=run, task=task, base=npz, out=tmp_path / "out"))
    done = ImageGenerator(read_request(path)).run(progress=False)
    assert done.images.name == "ddim_eta1.0_rev5_gen_4x8x8x3.npz"
    images = images_of(done)
    known = (base[np.arange(4) % 3][..., 1] * 255).round().astype(np.uint8)
    assert (images[..., 1] == known).all() == (task == "channel_inpaint")


# The library's own faces


def test_sample_images_draws_what_it_is_asked_and_leaves_the_network_as_it_was(run: Path) -> None:
    model = load_network(run)
    model.network.train()
    images = generation.sample_images(model, 5, labels=[0, 1, 2, 0, 1], seed=3)
    assert model.network.training
    assert images.shape == (5, 8, 8, 3) and images.dtype == np.uint8
    again = generation.sample_images(model, 3, labels=torch.tensor([0, 1, 2]), seed=3)
    assert (again == images[:3]).all()
    assert (generation.sample_images(model, 3, labels=[0, 1, 2], seed=4) != again).any()
    assert (generation.sample_images(model, 3, seed=3) != again).any()


@pytest.mark.parametrize(
    ("count", "labels", "words"),
    [(0, None, "num_images is 0; give at least 1"), (3, [0], "1 labels for 3 images")],
)
def test_sample_images_refuses_what_it_cannot_draw(
    run: Path, count: int, labels: list[int] | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        generation.sample_images(load_network(run), count, labels)


def with_keys(run: Path, *overrides: str) -> Config:
    return configuration.load(run / "training_config.yaml", overrides)


def test_the_sample_grid_is_the_same_for_every_training_seed(run: Path) -> None:
    model = load_network(run)
    grid = generation.sample_grid(model.network, model.schedule, model.config)
    assert grid.shape == (6, 8, 8, 3)
    for key, is_same in (("TRAINING.SEED=5", True), ("EVALUATION.SEED=5", False)):
        other = generation.sample_grid(model.network, model.schedule, with_keys(run, key))
        assert (other == grid).all() == is_same


@pytest.mark.parametrize(
    ("nums", "labels"),
    [(7, [0, 0, 1, 1, 2, 2]), (6, [0, 0, 1, 1, 2, 2]), (3, [0, 1, 2]), (2, [0, 1])],
)
def test_the_sample_grid_has_its_classes_in_rows(run: Path, nums: int, labels: list[int]) -> None:
    found = generation.grid_labels(with_keys(run, f"TRAINING.INLINE_GEN.NUMS={nums}"))
    assert found is not None and found.tolist() == labels
    assert generation.grid_labels(with_keys(run, "TRAINING.NETWORK.NUM_CLASSES=null")) is None


def test_images_that_are_not_finite_are_refused(run: Path) -> None:
    model = load_network(run)

    def network(x_t: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        pred = model.network(x_t, time, labels)
        pred[1:] = torch.nan
        return pred

    with pytest.raises(NonFiniteError, match="image 1 and 4 others are not finite"):
        generation.sample_grid(network, model.schedule, model.config)


def test_save_samples_leaves_the_grid_of_the_averaged_network(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    model = load_network(run)
    path = generation.save_samples(run, model.config)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        expected = generation.sample_grid(model.network, model.schedule, model.config)
        assert (arrays["images"] == expected).all()
    assert pixels(run / "samples.png").shape == (2 + 3 * 34, 2 + 2 * 34, 3)


# The command line


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "launch/sample.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_command_draws_and_says_where(run: Path, tmp_path: Path) -> None:
    target = f"IMAGE_GENERATION.GEN_SAVE_DIR={tmp_path / 'out'}"
    dry = command(str(run), target, "--dry-run")
    assert dry.returncode == 0 and "would draw 5 images" in dry.stdout
    assert not (tmp_path / "out").exists()
    done = command(str(run), target, "--batch-size", "4")
    assert done.returncode == 0, done.stderr
    stem = "ddim_eta0.0_steps4_gen_5x8x8x3"
    assert done.stdout.splitlines()[-1].startswith(f"done: 5 images in {tmp_path}/out/{stem}.npz")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{stem}.json",
        f"{stem}.npz",
        f"{stem}.png",
    ]
    again = command(str(run), target, "--batch-size", "4")
    assert again.stdout.startswith("already drawn: 5 images")


def test_the_command_lists_bad_input_line_by_line(run: Path, tmp_path: Path) -> None:
    done = command(
        str(run),
        "IMAGE_GENERATION.DDIM_ETA=2",
        "IMAGE_GENERATION.CLASS_LABEL=9",
        f"IMAGE_GENERATION.GEN_SAVE_DIR={tmp_path / 'out'}",
        "DATASET.NAME=x",
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "out").exists()
