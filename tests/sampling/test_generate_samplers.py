"""Samplers, spacings and guides from the keys of IMAGE_GENERATION to the files they draw."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddpm.errors import InputError
from ddpm.runs.checkpoint import folder_of
from ddpm.sampling import generation
from ddpm.sampling.generation import Generated, ImageGenerator, to_uint8
from ddpm.sampling.loading import load_network
from ddpm.sampling.request import read_request
from ddpm.sampling.samplers import SamplerOptions, SampleState, Start, sample
from tests.sampling.test_generate import STEP, images_of, make_config, make_run

CLASSES = {"GEN_TASK": "class_cond"}
GUIDED = {**CLASSES, "GUIDANCE": 2.0}
CLIPPED = {**CLASSES, "CLIP_DENOISE": "true"}
ANCESTRAL = {**CLASSES, "DDIM_ETA": 1.0}

Draw = Callable[..., Generated]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


def overrides(**keys: object) -> list[str]:
    return [f"IMAGE_GENERATION.{key}={value}" for key, value in keys.items()]


@pytest.fixture
def draw(run: Path, tmp_path: Path) -> Draw:
    def drawn(ema: float | None = None, **keys: object) -> Generated:
        wanted = overrides(**{"GEN_SAVE_DIR": tmp_path / "out", **keys})
        request = read_request(run, wanted, ema=ema, batch_size=5)
        return ImageGenerator(request).run(progress=False)

    return drawn


def problems(source: Path, ema: float | None = None, **keys: object) -> str:
    with pytest.raises(InputError) as caught:
        read_request(source, overrides(**keys), ema=ema)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("beside", "change"),
    [
        *((CLASSES, {"SPACING": spacing}) for spacing in ("linspace", "logsnr", "karras")),
        *((CLASSES, {"SAMPLER": sampler}) for sampler in ("heun", "dpmpp_2m")),
        (ANCESTRAL, {"SAMPLER": "dpmpp_2m_sde"}),
        (CLIPPED, {"RECOMPUTE_NOISE": "false"}),
        (GUIDED, {"GUIDE": "model"}),
        (GUIDED, {"GUIDE": 0.99}),
        (GUIDED, {"GUIDANCE_INTERVAL": [-3, 1]}),
        (GUIDED, {"GUIDANCE_RESCALE": 0.7}),
        ({}, {"GUIDANCE": 2.0, "GUIDE": "model"}),
    ],
    ids=lambda keys: "-".join(map(str, keys.items())),
)
def test_every_sampling_option_changes_the_images(
    draw: Draw, beside: dict[str, object], change: dict[str, object]
) -> None:
    before, after = draw(**beside), draw(**{**beside, **change})
    assert images_of(before).shape == images_of(after).shape
    assert (images_of(before) != images_of(after)).any()
    assert before.recipe.read_text() != after.recipe.read_text()


@pytest.mark.parametrize(
    ("keys", "stem"),
    [
        ({"SAMPLER": "heun"}, "heun_steps4_gen_5x8x8x3"),
        (
            {"SAMPLER": "dpmpp_2m", "NUM_STEPS": "null", "REVERSE_STRIDE": 5},
            "dpmpp_2m_rev5_gen_5x8x8x3",
        ),
        ({"SAMPLER": "ddpm", "DDIM_ETA": 1.0}, "ddim_eta1.0_steps4_gen_5x8x8x3"),
    ],
)
def test_files_of_other_samplers_begin_with_their_name(
    draw: Draw, keys: dict[str, object], stem: str
) -> None:
    assert draw(**keys).images.name == f"{stem}.npz"


def test_more_steps_than_timesteps_are_walked_between_them(draw: Draw) -> None:
    assert images_of(draw(NUM_STEPS=30, SPACING="karras")).shape == (5, 8, 8, 3)


def test_ddpm_is_ddim_with_eta_one(draw: Draw) -> None:
    ddpm, ddim = draw(SAMPLER="ddpm", **ANCESTRAL), draw(SAMPLER="ddim", **ANCESTRAL)
    assert (images_of(ddpm) == images_of(ddim)).all()


def test_an_eta_that_is_not_used_is_no_part_of_the_recipe(draw: Draw) -> None:
    assert draw(SAMPLER="heun", DDIM_ETA=0.0).images == draw(SAMPLER="heun", DDIM_ETA=1.0).images


def test_a_guide_is_asked_in_place_of_the_null_class(run: Path, draw: Draw) -> None:
    model, guide = load_network(run), load_network(run, 0.99)
    x0 = sample(
        model.network,
        model.schedule,
        torch.arange(5),
        model.image_shape,
        pred_type="velocity",
        num_steps=4,
        labels=torch.tensor([0, 1, 2, 0, 1]),
        guidance=2.0,
        guide=guide.network,
    )
    generated = draw(**GUIDED, GUIDE=0.99)
    assert (images_of(generated) == to_uint8(x0).numpy()).all()
    assert json.loads(generated.recipe.read_text())["sampler"]["guide_sha256"] == guide.sha256


def test_a_guide_may_be_another_run_or_a_checkpoint(run: Path, draw: Draw, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", DROPOUT_RATE=0.5)
    of_run = draw(**GUIDED, GUIDE=other)
    of_checkpoint = draw(**GUIDED, GUIDE=folder_of(other / "checkpoints", STEP))
    # Its weights are those of `run`, so this guide is the network itself: nothing to exaggerate.
    for generated in (of_run, of_checkpoint):
        assert (images_of(generated) == images_of(draw(**CLASSES))).all()
    assert of_run.images == of_checkpoint.images


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


def test_a_guide_of_another_network_schedule_or_prediction_is_refused(
    run: Path, tmp_path: Path
) -> None:
    training = {"PRED_TYPE": "image", "SEED": 4}
    other = make_run(tmp_path, training, TIMESTEPS=20, FIRST_CHANNEL=16)
    found = problems(run, **GUIDED, GUIDE=other).splitlines()
    changes = ("PRED_TYPE: ", "TIMESTEPS: 12 -> 20", "FIRST_CHANNEL: 8 -> 16")
    assert len(found) == 3
    for change in changes:
        assert any(
            change in line and "the same network and noise schedule" in line for line in found
        )


def test_an_unconditional_network_is_guided_by_a_guide_alone(tmp_path: Path) -> None:
    path = make_run(tmp_path, NUM_CLASSES=None)
    request = read_request(path, overrides(GUIDANCE=2.0, GUIDE="model"))
    assert ImageGenerator(request).draw().shape == (5, 8, 8, 3)
    assert "nothing to guide" in problems(path, GUIDANCE=2.0)


# Batches


def test_draw_begins_where_each_batch_is_told_to(run: Path) -> None:
    model = load_network(run)
    x0 = torch.linspace(-1, 1, 5 * 3 * 8 * 8).view(5, 3, 8, 8)
    options = SamplerOptions(pred_type="velocity", num_steps=12, resamples=1)
    drawn = generation.draw(
        model.network,
        model.schedule,
        3,
        model.image_shape,
        options,
        start=lambda ids: Start(time=0.5, x0=x0[ids % 5]),
        batch_size=2,
    )
    alone = sample(
        model.network,
        model.schedule,
        torch.arange(2, 4),
        model.image_shape,
        start=Start(time=0.5, x0=x0[2:4]),
        labels=torch.full((2,), model.network.null_label),
        **vars(options),
    )
    assert (drawn[2] == to_uint8(alone)[0].numpy()).all()


@pytest.mark.parametrize("steps", [{"num_steps": 5}, {"reverse_stride": 5}])
def test_num_calls_counts_the_steps_taken_again(run: Path, steps: dict[str, int]) -> None:
    model, states = load_network(run), list[SampleState]()
    options = SamplerOptions(pred_type="velocity", resamples=2, **steps)
    generation.draw_batch(
        model.network,
        model.schedule,
        torch.arange(2),
        model.image_shape,
        options,
        on_state=lambda ids, state: states.append(state),
    )
    assert len(states) == generation.num_calls(options, model.schedule)


def test_the_default_options_are_those_of_the_library(run: Path) -> None:
    """What IMAGE_GENERATION leaves out is what SamplerOptions leaves out."""
    generator = ImageGenerator(read_request(run, overrides(NUM_STEPS=4)))
    assert generator.sampler == SamplerOptions(pred_type="velocity", num_steps=4)
    assert make_config(run).IMAGE_GENERATION.RECOMPUTE_NOISE
