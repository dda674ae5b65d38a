"""Rules over several keys, and agreement with the modules the configuration speaks for."""

import inspect
from collections.abc import Iterator
from typing import get_args

import pytest

from ddpm import config as c
from ddpm.config import rules, schema
from ddpm.config.loading import apply_overrides, build, read_file, validate
from ddpm.config.schema import Config
from ddpm.diffusion import process
from ddpm.diffusion.density import DENSITIES
from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError
from ddpm.sampling.samplers import SAMPLERS
from ddpm.sampling.spacing import SPACINGS, WHOLE
from tests.support.tree import ROOT

DIGITS = ROOT / "configs" / "digits.yaml"
NETWORK, GENERATE = "TRAINING.NETWORK.", "IMAGE_GENERATION."
SHORT = {
    "H.": "TRAINING.HYPER_PARAMETERS.",
    "N.": NETWORK,
    "G.": GENERATE,
    "C.": "DATASET.PREPROCESSING.",
    "E.": "EVALUATION.",
    "T.": "TRAINING.",
}

# Overrides of digits.yaml that break one rule, and words of its line.
BROKEN = [
    (
        "N.HAS_ATTENTION=[true]",
        "HAS_ATTENTION has 1 entries but CHANNEL_MULTIPLIER has 2; give one true/false per level",
    ),
    (
        "N.NORM_GROUPS=12",
        "NORM_GROUPS is 12 but FIRST_CHANNEL is 16; give a number of groups that divides it",
    ),
    (
        "N.NUM_HEADS=3",
        "NUM_HEADS is 3 but the attention is 32 channels wide; give a number of heads that divides",
    ),
    (
        "N.USE_CROSS_ATTENTION=true N.HAS_ATTENTION=[false,false]",
        "USE_CROSS_ATTENTION is true but HAS_ATTENTION is false at every level",
    ),
    ("N.BLOCK_SIZE=3", "BLOCK_SIZE is 3 but images are 8x8; give a divisor of both"),
    (
        "N.CHANNEL_MULTIPLIER=[1,1,1,1,1] N.HAS_ATTENTION=[no,no,no,no,no]",
        "INPUT_IMAGE_SIZE is 8x8 but 5 levels with BLOCK_SIZE 1 need at least 16 pixels a side",
    ),
    (
        "G.NEW_IMAGE_SIZE=1",
        "NEW_IMAGE_SIZE is 1x1 but 2 levels with BLOCK_SIZE 1 need at least 2 pixels a side",
    ),
    ("N.TIME_EMB_DIM=127", "TIME_EMB_DIM is 127; give an even"),
    ("N.KERNEL_SIZE=4", "KERNEL_SIZE is 4; give an odd number"),
    (
        "N.SCHEDULER=iddpm_linear N.TIMESTEPS=20 G.NUM_STEPS=null",
        "TIMESTEPS is 20 but SCHEDULER iddpm_linear reaches beta >= 1 at 20 or fewer",
    ),
    (
        "T.PRED_TYPE=noise N.ZERO_TERMINAL_SNR=true",
        "PRED_TYPE is noise but TRAINING.NETWORK.ZERO_TERMINAL_SNR is true",
    ),
    (
        "N.ZERO_TERMINAL_SNR=true N.TIMESTEPS=1 G.NUM_STEPS=null",
        "ZERO_TERMINAL_SNR is true but TIMESTEPS is 1",
    ),
    (
        "T.DENSITY_PARAMETERS=[0,1]",
        "DENSITY_PARAMETERS is [0.0, 1.0] but LOGSNR_DENSITY is schedule, which has none",
    ),
    (
        "T.LOGSNR_DENSITY=adaptive T.DENSITY_PARAMETERS=[0,1]",
        "DENSITY_PARAMETERS is [0.0, 1.0] but LOGSNR_DENSITY is adaptive, which has none",
    ),
    (
        "T.LOGSNR_DENSITY=laplace T.WEIGHTED_AS=laplace",
        "WEIGHTED_AS is laplace but LOGSNR_DENSITY is laplace, which draws so already; give null",
    ),
    (
        "T.LOGSNR_DENSITY=adaptive T.WEIGHTED_AS=laplace",
        "WEIGHTED_AS is laplace but LOGSNR_DENSITY is adaptive, which weighs losses itself",
    ),
    (
        "T.LOSS_FLOOR=0.05 T.LOSS_SPACE=null",
        "LOSS_FLOOR is 0.05 but LOSS_SPACE is null, so no prediction is converted; give LOSS_SPACE",
    ),
    (
        "T.LOGSNR_DENSITY=uniform T.DENSITY_PARAMETERS=[3,3]",
        "DENSITY_PARAMETERS is [3.0, 3.0] but LOGSNR_DENSITY is uniform; give the lower log SNR",
    ),
    (
        "T.LOGSNR_DENSITY=laplace T.DENSITY_PARAMETERS=[0,0]",
        "DENSITY_PARAMETERS is [0.0, 0.0] but LOGSNR_DENSITY is laplace, whose second one is",
    ),
    (
        "T.LOGSNR_DENSITY=edm N.ZERO_TERMINAL_SNR=true",
        "LOGSNR_DENSITY is edm but TRAINING.NETWORK.ZERO_TERMINAL_SNR is true: no density",
    ),
    (
        "T.LOGSNR_DENSITY=edm N.TIME_INPUT=time",
        "TIME_INPUT is time but TRAINING.LOGSNR_DENSITY is edm, whose noise levels have no",
    ),
    (
        "H.WARMUP_STEPS=601",
        "WARMUP_STEPS is 601 but EPOCHS x STEPS_PER_EPOCH is 600 steps; give fewer",
    ),
    (
        "T.MICRO_BATCH=129",
        "MICRO_BATCH is 129 but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is 128; give at most 128",
    ),
    (
        "CLUSTER.NUM_WORKERS=129",
        "NUM_WORKERS is 129 but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is 128: a worker needs",
    ),
    (
        "T.IS_NEW_TRAIN=false",
        "IS_NEW_TRAIN is false but TRAINED_H5 is null; name the run or checkpoint to start from",
    ),
    (
        "C.RESIZE=true C.CROP_SIZE=4",
        "RESIZE is true but CROP_SIZE is 4; give one of them",
    ),
    (
        "C.AUGMENT=true",
        "AUGMENT is true but AUGMENT_TYPE is null; give one of horizontal_flip, vertical_flip",
    ),
    (
        "C.AUGMENT=true C.AUGMENT_TYPE=rot90 T.INPUT_IMAGE_SIZE=[8,4]",
        "AUGMENT_TYPE is rot90 but images are 8x4; give square images or one of the flips",
    ),
    ("DATASET.LABEL_KEY=null", "NUM_CLASSES is 10 but DATASET.LABEL_KEY is null; name the labels"),
    (
        "T.INLINE_GEN.REVERSE_STRIDE=1001",
        "INLINE_GEN.REVERSE_STRIDE is 1001 but TRAINING.NETWORK.TIMESTEPS is 1000; give a stride",
    ),
    (
        "G.NUM_STEPS=1001",
        "NUM_STEPS is 1001 but TRAINING.NETWORK.TIMESTEPS is 1000; give a number of steps of at",
    ),
    (
        "G.SPACING=karras N.TIMESTEPS=2 G.NUM_STEPS=null",
        "SPACING is karras but TRAINING.NETWORK.TIMESTEPS is 2, with no room between",
    ),
    (
        "G.SPACING=linspace G.REVERSE_STRIDE=10 G.NUM_STEPS=null",
        "REVERSE_STRIDE is 10 but SPACING is linspace, which spaces NUM_STEPS; give REVERSE_STRIDE",
    ),
    (
        "G.SAMPLER=heun G.DDIM_ETA=0.5",
        "SAMPLER is heun, which draws no noise, but DDIM_ETA is 0.5; give DDIM_ETA 0.0 or SAMPLER",
    ),
    (
        "G.GUIDANCE_RESCALE=0.7",
        "GUIDANCE_RESCALE is 0.7 but GUIDANCE is 1.0, which is off; give GUIDANCE such as 2.0",
    ),
    (
        "G.GUIDANCE_INTERVAL=[2,-2] G.GUIDANCE=2",
        "GUIDANCE_INTERVAL is [2.0, -2.0], which holds no log SNR; give the lower one first",
    ),
    (
        "E.SAMPLING_LOGSNR=[5,-8]",
        "SAMPLING_LOGSNR is [5.0, -8.0]; a walk goes from noise to images: give the lower",
    ),
    (
        "E.SAMPLING_METHOD=dpmpp_2m E.SAMPLING_ETAS=[0.0,1.0]",
        "SAMPLING_METHOD is dpmpp_2m, which draws no noise, but SAMPLING_ETAS is [0.0, 1.0]; give",
    ),
    (
        "E.SAMPLING_GUIDANCES=[1.0,2.0] N.NUM_CLASSES=null G.GEN_TASK=random_uncond",
        "SAMPLING_GUIDANCES is [1.0, 2.0] but TRAINING.NETWORK.NUM_CLASSES is null: nothing to",
    ),
    (
        "E.SAMPLING_GUIDANCES=[2.0] N.NUM_CLASSES=10 T.LABEL_DROP=0.0",
        "SAMPLING_GUIDANCES is [2.0] but TRAINING.LABEL_DROP is 0.0: the null class is never",
    ),
    (
        "E.EMA_LENGTHS=[0.05]",
        "EMA_LENGTHS is [0.05] but TRAINING.EMA_POWER is [], so no snapshots are kept; give",
    ),
    (
        "G.RECOMPUTE_NOISE=false G.CLIP_DENOISE=false",
        "RECOMPUTE_NOISE is false but CLIP_DENOISE is false too, so there is nothing to recompute;",
    ),
    (
        "G.REVERSE_STRIDE=10 G.NUM_STEPS=50",
        "NUM_STEPS is 50 and REVERSE_STRIDE is 10; give one of them, the other null",
    ),
    ("G.SAMPLER=ddpm", "SAMPLER is ddpm but DDIM_ETA is 0.0; give DDIM_ETA 1.0 or SAMPLER ddim"),
    (
        "G.GUIDANCE=2 T.LABEL_DROP=0",
        "GUIDANCE is 2.0 but TRAINING.LABEL_DROP is 0.0: the null class is never trained",
    ),
    (
        "N.NUM_CLASSES=null",
        "GEN_TASK is class_cond but TRAINING.NETWORK.NUM_CLASSES is null; give the number",
    ),
    (
        "G.CLASS_LABEL=[0,10]",
        "CLASS_LABEL 10 is no class: TRAINING.NETWORK.NUM_CLASSES is 10; give labels from 0 to 9",
    ),
    (
        "G.FREEZE_CHANNEL=1",
        "FREEZE_CHANNEL is 1 but TRAINING.INPUT_IMAGE_CHANNEL is 1; give a channel from 0 to 0",
    ),
    (
        "E.BEST=mean_log10_mse",
        "BEST is mean_log10_mse but EVERY is null, so nothing is evaluated while training; give",
    ),
    (
        "E.FEATURES=pixels",
        "FEATURES is pixels but EVERY is null, so nothing is evaluated while training; give EVERY",
    ),
    (
        "E.BEST=fid_infinity E.EVERY=1",
        "BEST is fid_infinity but FEATURES is null, so nothing is drawn; give FEATURES classifier",
    ),
    (
        "E.FEATURES=inception E.EVERY=1",
        "FEATURES is inception but WEIGHTS is null; name the file of its weights that docs/metrics",
    ),
    (
        "E.BEST=fid_infinity E.EVERY=1 E.FEATURES=inception E.WEIGHTS=w",
        "BEST is fid_infinity but SAMPLES is 1024, and an FID of inception features means nothing",
    ),
    (
        "E.PATIENCE=3 E.EVERY=1",
        "PATIENCE is 3 but BEST is null, so nothing can get better; give BEST mean_log10_mse, or",
    ),
    (
        "E.BEST=kid E.EVERY=1",
        "BEST is kid but FEATURES is null, so nothing is drawn; give FEATURES",
    ),
    (
        "E.FEATURES=inception E.EVERY=1 E.WEIGHTS=w T.INPUT_IMAGE_CHANNEL=2",
        "FEATURES is inception but images have 2 channels and it takes 1 or 3; give",
    ),
    (
        "T.IS_NEW_TRAIN=false T.TRAINED_H5=a/model.h5 N.KERAS_LAYERS=false",
        "TRAINED_H5 is a/model.h5, a Keras file, but TRAINING.NETWORK.KERAS_LAYERS is false",
    ),
    (
        "T.LOGSNR_DENSITY=edm N.TIME_INPUT=timestep",
        "TIME_INPUT is timestep but TRAINING.LOGSNR_DENSITY is edm, whose noise levels have no",
    ),
    ("T.LOSS_SPACE=noise N.ZERO_TERMINAL_SNR=true", "TRAINING.LOSS_SPACE is noise but"),
    (
        "G.NUM_STEPS=null G.REVERSE_STRIDE=1001",
        "IMAGE_GENERATION.REVERSE_STRIDE is 1001 but "
        "TRAINING.NETWORK.TIMESTEPS is 1000; give a stride of at most 1000",
    ),
    ("T.INLINE_GEN.REVERSE_STRIDE=1001", "INLINE_GEN.REVERSE_STRIDE is 1001 but"),
    ("G.SAMPLER=dpmpp_2m_sde", "SAMPLER is dpmpp_2m_sde but DDIM_ETA is 0.0; give"),
    ("G.GUIDE=model", "GUIDE is model but GUIDANCE is 1.0, which is off; give"),
    ("G.GUIDANCE_INTERVAL=[-2,2]", "GUIDANCE_INTERVAL is [-2.0, 2.0] but GUIDANCE is"),
    (
        "N.NUM_CLASSES=null G.GEN_TASK=random_uncond G.GUIDANCE=3",
        "GUIDANCE is 3.0 but TRAINING.NETWORK.NUM_CLASSES is null: nothing to guide",
    ),
    (
        "N.BLOCK_SIZE=2 G.NEW_IMAGE_SIZE=9",
        "NEW_IMAGE_SIZE is 9 but TRAINING.NETWORK.BLOCK_SIZE is 2; give a multiple of it",
    ),
    ("G.CLASS_LABEL=10", "CLASS_LABEL 10 is no class"),
    (
        "E.FEATURES=classifier E.EVERY=1 DATASET.LABEL_KEY=null "
        "N.NUM_CLASSES=null G.GEN_TASK=random_uncond",
        "FEATURES is classifier but DATASET.LABEL_KEY is null, and it is trained on labels; give",
    ),
]

# What lies just inside a rule.
FINE = [
    "N.TIMESTEPS=50",
    "H.WARMUP_STEPS=400",
    "H.WARMUP_STEPS=9999 H.LR_TYPE=constant",
    "H.WARMUP_STEPS=9999 H.STEPS_PER_EPOCH=null",
    "N.SCHEDULER=iddpm_linear N.TIMESTEPS=21 G.NUM_STEPS=21",
    "T.PRED_TYPE=noise",
    "T.MICRO_BATCH=128 CLUSTER.NUM_WORKERS=128",
    "C.AUGMENT_TYPE=rot90 T.INPUT_IMAGE_SIZE=[8,4]",
    "G.SAMPLER=ddpm G.DDIM_ETA=1",
    "G.GUIDANCE=2",
    "G.GUIDANCE=2 G.GUIDE=0.9 T.LABEL_DROP=0",
    "G.GUIDANCE=2 G.GUIDANCE_INTERVAL=[-2,-2]",
    "G.SPACING=logsnr G.NUM_STEPS=1001",
    "G.SAMPLER=heun G.DDIM_ETA=0",
    "G.SAMPLER=dpmpp_2m G.DDIM_ETA=1",
    "G.CLASS_LABEL=[9,9,0]",
    "N.NUM_HEADS=32",
    "T.IS_NEW_TRAIN=false T.TRAINED_H5=runs/one",
    "T.IS_NEW_TRAIN=false T.TRAINED_H5=a/model.h5",
    "T.INPUT_IMAGE_SIZE=[9,11]",
]


def written_out(text: str) -> list[str]:
    """Overrides with their sections in full."""
    return [SHORT.get(one[:2], one[:2]) + one[2:] for one in text.split()]


def lines(overrides: list[str]) -> list[str]:
    with pytest.raises(InputError) as caught:
        c.load(DIGITS, overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize(("overrides", "words"), BROKEN, ids=lambda value: value[:40])
def test_a_contradiction_is_one_line_that_says_what_to_do(overrides: str, words: str) -> None:
    (line,) = lines(written_out(overrides))
    assert words in line and "; " in line
    assert line.startswith(("command line: ", f"{DIGITS}:"))


def judged(overrides: str) -> Iterator[tuple[str, int, object]]:
    """(topic, number, what it says) of every rule."""
    document = read_file(DIGITS)
    apply_overrides(document, written_out(overrides))
    config = validate(document, Config)
    assert config is not None
    for topic in (
        *(rules.network, rules.training, rules.generation, rules.evaluation),
        rules.impossible,
    ):
        yield from ((topic.__name__, n, said) for n, said in enumerate(topic(config)))


def test_every_rule_has_its_case() -> None:
    broken = {rule[:2] for text, _ in BROKEN for rule in judged(text) if rule[2]}
    assert {rule[:2] for rule in judged("")} == broken and len(broken) > 40


def test_a_rule_says_nothing_about_a_value_that_is_wrong_by_itself() -> None:
    (line,) = lines([NETWORK + "TIMESTEPS=-5"])
    assert "TIMESTEPS is -5" in line


def test_a_rule_says_nothing_about_a_key_that_was_misspelt() -> None:
    (line,) = lines(
        [NETWORK + "CHANEL_MULTIPLIER=[1, 2, 3]", NETWORK + "HAS_ATTENTION=[no, no, no]"]
    )
    assert "did you mean TRAINING.NETWORK.CHANNEL_MULTIPLIER?" in line


@pytest.mark.parametrize("overrides", FINE)
def test_what_lies_just_inside_a_rule_is_accepted(overrides: str) -> None:
    c.load(DIGITS, written_out(overrides))


def test_the_words_are_those_of_the_mathematics() -> None:
    assert schema.SCHEDULERS == tuple(SCHEDULES)
    assert set(get_args(schema.Density)) == {"schedule", "adaptive", *DENSITIES}
    assert get_args(schema.PredType) == process.PRED_TYPES
    assert get_args(schema.LossFn) == process.LOSS_FNS
    assert get_args(schema.LossWeighting) == process.LOSS_WEIGHTINGS
    assert get_args(schema.Sampler) == tuple(SAMPLERS)
    assert set(rules.ANCESTRAL) == {name for name, one in SAMPLERS.items() if one.noise == "all"}
    assert set(rules.NOISE_FREE) == {name for name, one in SAMPLERS.items() if one.noise == "none"}
    assert get_args(schema.Spacing) == SPACINGS and rules.WHOLE == WHOLE


def test_the_arguments_are_those_of_network_and_schedule() -> None:
    config = c.load(DIGITS)
    for target, arguments in (
        (UNet, c.network_arguments(config)),
        (NoiseSchedule, c.schedule_arguments(config)),
    ):
        unknown = {"sigma_data", "given"}  # to configurations: of data, and of Python
        assert set(arguments) == set(inspect.signature(target).parameters) - unknown


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("overrides", [[], [NETWORK + "ZERO_TERMINAL_SNR=true"]], ids=len)
def test_every_accepted_schedule_can_be_built(scheduler: str, overrides: list[str]) -> None:
    least = 21 if scheduler == "iddpm_linear" else 2
    for timesteps in (least, 1000):
        steps = [f"{NETWORK}TIMESTEPS={timesteps}", GENERATE + "NUM_STEPS=null"]
        config = c.load(DIGITS, [f"{NETWORK}SCHEDULER={scheduler}", *steps, *overrides])
        NoiseSchedule(**c.schedule_arguments(config))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["TRAINING.INPUT_IMAGE_SIZE=[5, 3]"],
        [NETWORK + "CHANNEL_MULTIPLIER=[1]", NETWORK + "HAS_ATTENTION=[true]"],
        [NETWORK + "BLOCK_SIZE=4", NETWORK + "KERNEL_SIZE=1"],
        [NETWORK + "TIME_EMB_DIM=4", NETWORK + "NORM_GROUPS=16", NETWORK + "NUM_HEADS=32"],
        [NETWORK + "USE_CROSS_ATTENTION=true", NETWORK + "CLASS_EMB_DIM=1"],
    ],
    ids=str,
)
def test_an_accepted_network_can_be_built(overrides: list[str]) -> None:
    config = c.load(DIGITS, overrides)
    assert UNet(**c.network_arguments(config)).image_size == c.image_shape(config)[1:]


WITHOUT_EFFECT = {
    "G.CLASS_LABEL=3": "G.GEN_TASK=class_cond",
    "G.FREEZE_CHANNEL=0": "G.GEN_TASK=channel_inpaint",
    "G.EXTERNAL_NPZ_INPUT=x.npz": "G.GEN_TASK=sdedit",
    "G.STRENGTH=0.2": "G.GEN_TASK=sdedit",
    "G.KNOWN_NOISE=none": "G.GEN_TASK=inpaint",
    "G.RESAMPLES=3": "G.GEN_TASK=inpaint",
    "G.EXPORT_EVERY=3": "G.EXPORT_INTERM=true",
    "G.EXPORT_FORMAT=gif": "G.EXPORT_INTERM=true",
}


@pytest.mark.parametrize("given", WITHOUT_EFFECT)
def test_a_key_that_is_given_and_has_no_effect_is_an_error(given: str) -> None:
    key, advice = written_out(given)[0].partition("=")[0], WITHOUT_EFFECT[given]
    plain = f"{given} G.GEN_TASK=random_uncond" if "GEN_TASK" in advice else given
    (line,) = lines(written_out(plain))
    assert line.startswith(f"command line: {key} has no effect: ")
    assert advice.partition(".")[2].partition("=")[0] in line
    c.load(DIGITS, written_out(f"{given} {advice}"))
    # A file may have it, and a grid.
    document = read_file(DIGITS)
    apply_overrides(document, written_out(plain))
    assert build(document).config is not None
