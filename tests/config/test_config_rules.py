"""Rules over several keys, and agreement with the modules the configuration speaks for."""

import inspect
from pathlib import Path

import pytest

from ddpm import config as c
from ddpm.config import rules, schema
from ddpm.config import schema as sampler_schema
from ddpm.config.rules import NETWORK_RULES, RUN_RULES
from ddpm.config.schema import Config, items_under
from ddpm.diffusion import process
from ddpm.diffusion.schedule import SCHEDULES, NoiseSchedule
from ddpm.diffusion.unet import UNet
from ddpm.errors import InputError
from ddpm.sampling.samplers import SAMPLERS
from ddpm.sampling.spacing import SPACINGS, WHOLE

DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"
HYPER, NETWORK, GENERATE = "TRAINING.HYPER_PARAMETERS.", "TRAINING.NETWORK.", "IMAGE_GENERATION."
CROP = "DATASET.PREPROCESSING."

# Rule: overrides of digits.yaml that break it, and words of its line.
BROKEN: dict[str, tuple[list[str], str]] = {
    "attention_per_level": (
        [NETWORK + "HAS_ATTENTION=[true]"],
        "HAS_ATTENTION has 1 entries but CHANNEL_MULTIPLIER has 2; give one true/false per level",
    ),
    "groups_divide_widths": (
        [NETWORK + "NORM_GROUPS=12"],
        "NORM_GROUPS is 12 but FIRST_CHANNEL is 16; give a number of groups that divides it",
    ),
    "heads_divide_widths": (
        [NETWORK + "NUM_HEADS=3"],
        "NUM_HEADS is 3 but the attention is 32 channels wide; give a number of heads that divides",
    ),
    "cross_attention_has_a_place": (
        [NETWORK + "USE_CROSS_ATTENTION=true", NETWORK + "HAS_ATTENTION=[false, false]"],
        "USE_CROSS_ATTENTION is true but HAS_ATTENTION is false at every level",
    ),
    "block_divides_image": (
        [NETWORK + "BLOCK_SIZE=3"],
        "BLOCK_SIZE is 3 but images are 8x8; give a divisor of both",
    ),
    "image_is_large_enough": (
        [NETWORK + "CHANNEL_MULTIPLIER=[1,1,1,1,1]", NETWORK + "HAS_ATTENTION=[no,no,no,no,no]"],
        "INPUT_IMAGE_SIZE is 8x8 but 5 levels with BLOCK_SIZE 1 need at least 16 pixels a side",
    ),
    "new_image_is_large_enough": (
        [GENERATE + "NEW_IMAGE_SIZE=1"],
        "NEW_IMAGE_SIZE is 1x1 but 2 levels with BLOCK_SIZE 1 need at least 2 pixels a side",
    ),
    "time_embedding_is_even": ([NETWORK + "TIME_EMB_DIM=127"], "TIME_EMB_DIM is 127; give an even"),
    "kernel_is_odd": ([NETWORK + "KERNEL_SIZE=4"], "KERNEL_SIZE is 4; give an odd number"),
    "iddpm_linear_needs_timesteps": (
        [NETWORK + "SCHEDULER=iddpm_linear", NETWORK + "TIMESTEPS=20", GENERATE + "NUM_STEPS=null"],
        "TIMESTEPS is 20 but SCHEDULER iddpm_linear reaches beta >= 1 at 20 or fewer",
    ),
    "noise_needs_signal": (
        ["TRAINING.PRED_TYPE=noise", NETWORK + "ZERO_TERMINAL_SNR=true"],
        "PRED_TYPE is noise but TRAINING.NETWORK.ZERO_TERMINAL_SNR is true",
    ),
    "zero_terminal_snr_needs_two": (
        [NETWORK + "ZERO_TERMINAL_SNR=true", NETWORK + "TIMESTEPS=1", GENERATE + "NUM_STEPS=null"],
        "ZERO_TERMINAL_SNR is true but TIMESTEPS is 1",
    ),
    "warmup_fits": (
        [HYPER + "WARMUP_STEPS=601"],
        "WARMUP_STEPS is 601 but EPOCHS x STEPS_PER_EPOCH is 600 steps; give fewer",
    ),
    "micro_batch_fits": (
        ["TRAINING.MICRO_BATCH=129"],
        "MICRO_BATCH is 129 but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is 128; give at most 128",
    ),
    "workers_have_work": (
        ["CLUSTER.NUM_WORKERS=129"],
        "NUM_WORKERS is 129 but TRAINING.HYPER_PARAMETERS.BATCH_SIZE is 128: a worker needs",
    ),
    "start_exists": (
        ["TRAINING.IS_NEW_TRAIN=false"],
        "IS_NEW_TRAIN is false but TRAINED_H5 is null; name the run or checkpoint to start from",
    ),
    "augmentation_is_named": (
        [CROP + "AUGMENT=true"],
        "AUGMENT is true but AUGMENT_TYPE is null; give one of horizontal_flip, vertical_flip",
    ),
    "rotation_needs_squares": (
        [CROP + "AUGMENT=true", CROP + "AUGMENT_TYPE=rot90", "TRAINING.INPUT_IMAGE_SIZE=[8, 4]"],
        "AUGMENT_TYPE is rot90 but images are 8x4; give square images or one of the flips",
    ),
    "classes_have_labels": (
        ["DATASET.LABEL_KEY=null"],
        "NUM_CLASSES is 10 but DATASET.LABEL_KEY is null; name the labels",
    ),
    "at_most_timesteps": (
        ["TRAINING.INLINE_GEN.REVERSE_STRIDE=1001"],
        "INLINE_GEN.REVERSE_STRIDE is 1001 but TRAINING.NETWORK.TIMESTEPS is 1000; give a stride",
    ),
    "steps_fit_spacing": (
        [GENERATE + "NUM_STEPS=1001"],
        "NUM_STEPS is 1001 but TRAINING.NETWORK.TIMESTEPS is 1000; give a number of steps of at",
    ),
    "spacing_has_room": (
        [GENERATE + "SPACING=karras", NETWORK + "TIMESTEPS=2", GENERATE + "NUM_STEPS=null"],
        "SPACING is karras but TRAINING.NETWORK.TIMESTEPS is 2, with no room between",
    ),
    "stride_is_trailing": (
        [
            GENERATE + "SPACING=linspace",
            GENERATE + "REVERSE_STRIDE=10",
            GENERATE + "NUM_STEPS=null",
        ],
        "REVERSE_STRIDE is 10 but SPACING is linspace, which spaces NUM_STEPS; give REVERSE_STRIDE",
    ),
    "eta_belongs_to_ddim": (
        [GENERATE + "SAMPLER=heun", GENERATE + "DDIM_ETA=0.5"],
        "SAMPLER is heun, which draws no noise, but DDIM_ETA is 0.5; give DDIM_ETA 0.0 or SAMPLER",
    ),
    "guidance_is_on": (
        [GENERATE + "GUIDANCE_RESCALE=0.7"],
        "GUIDANCE_RESCALE is 0.7 but GUIDANCE is 1.0, which is off; give GUIDANCE such as 2.0",
    ),
    "interval_rises": (
        [GENERATE + "GUIDANCE_INTERVAL=[2, -2]", GENERATE + "GUIDANCE=2"],
        "GUIDANCE_INTERVAL is [2.0, -2.0], which holds no log SNR; give the lower one first",
    ),
    "sampling_rises": (
        ["EVALUATION.SAMPLING_LOGSNR=[5, -8]"],
        "SAMPLING_LOGSNR is [5.0, -8.0]; a walk goes from noise to images: give the lower",
    ),
    "recomputing_needs_clipping": (
        [GENERATE + "RECOMPUTE_NOISE=false", GENERATE + "CLIP_DENOISE=false"],
        "RECOMPUTE_NOISE is false but CLIP_DENOISE is false too, so there is nothing to recompute;",
    ),
    "steps_or_stride": (
        [GENERATE + "REVERSE_STRIDE=10", GENERATE + "NUM_STEPS=50"],
        "NUM_STEPS is 50 and REVERSE_STRIDE is 10; give one of them, the other null",
    ),
    "ddpm_has_eta_one": (
        [GENERATE + "SAMPLER=ddpm"],
        "SAMPLER is ddpm but DDIM_ETA is 0.0; give DDIM_ETA 1.0 or SAMPLER ddim",
    ),
    "guidance_needs_classes": (
        [GENERATE + "GUIDANCE=2", "TRAINING.LABEL_DROP=0"],
        "GUIDANCE is 2.0 but TRAINING.LABEL_DROP is 0.0: the null class is never trained",
    ),
    "classes_to_draw": (
        [NETWORK + "NUM_CLASSES=null"],
        "GEN_TASK is class_cond but TRAINING.NETWORK.NUM_CLASSES is null; give the number",
    ),
    "label_is_a_class": (
        [GENERATE + "CLASS_LABEL=[0, 10]"],
        "CLASS_LABEL 10 is no class: TRAINING.NETWORK.NUM_CLASSES is 10; give labels from 0 to 9",
    ),
    "frozen_channel_exists": (
        [GENERATE + "FREEZE_CHANNEL=1"],
        "FREEZE_CHANNEL is 1 but TRAINING.INPUT_IMAGE_CHANNEL is 1; give a channel from 0 to 0",
    ),
    "best_is_measured": (
        ["EVALUATION.BEST=mean_log10_mse"],
        "BEST is mean_log10_mse but EVERY is null, so nothing is evaluated while training; give",
    ),
    "features_can_be_had": (
        ["EVALUATION.FEATURES=pixels"],
        "FEATURES is pixels but EVERY is null, so nothing is evaluated while training; give EVERY",
    ),
    "best_fid_has_features": (
        ["EVALUATION.BEST=fid_infinity", "EVALUATION.EVERY=1"],
        "BEST is fid_infinity but FEATURES is null, so nothing is drawn; give FEATURES classifier",
    ),
    "inception_can_be_had": (
        ["EVALUATION.FEATURES=inception", "EVALUATION.EVERY=1"],
        "FEATURES is inception but WEIGHTS is null; name the file of its weights that docs/metrics",
    ),
    "best_fid_has_samples": (
        [
            "EVALUATION.BEST=fid_infinity",
            "EVALUATION.EVERY=1",
            "EVALUATION.FEATURES=inception",
            "EVALUATION.WEIGHTS=w",
        ],
        "BEST is fid_infinity but SAMPLES is 1024, and an FID of inception features means nothing",
    ),
    "patience_waits_for_something": (
        ["EVALUATION.PATIENCE=3", "EVALUATION.EVERY=1"],
        "PATIENCE is 3 but BEST is null, so nothing can get better; give BEST mean_log10_mse, or",
    ),
}  # fmt: skip

# Second branches of the same rules.
ALSO_BROKEN = [
    (
        ["EVALUATION.BEST=kid", "EVALUATION.EVERY=1"],
        "BEST is kid but FEATURES is null, so nothing is drawn; give FEATURES",
    ),
    (
        [
            "EVALUATION.FEATURES=inception",
            "EVALUATION.EVERY=1",
            "EVALUATION.WEIGHTS=w",
            "TRAINING.INPUT_IMAGE_CHANNEL=2",
        ],
        "FEATURES is inception but images have 2 channels and it takes 1 or 3; give",
    ),
    (
        ["TRAINING.IS_NEW_TRAIN=false", "TRAINING.TRAINED_H5=a/model.h5"],
        "a Keras file, which cannot",
    ),
    (
        ["TRAINING.LOSS_SPACE=noise", NETWORK + "ZERO_TERMINAL_SNR=true"],
        "TRAINING.LOSS_SPACE is noise but",
    ),
    (
        [GENERATE + "NUM_STEPS=null", GENERATE + "REVERSE_STRIDE=1001"],
        "IMAGE_GENERATION.REVERSE_STRIDE is 1001 but TRAINING.NETWORK.TIMESTEPS is 1000; give a "
        "stride of at most 1000",
    ),
    (["TRAINING.INLINE_GEN.REVERSE_STRIDE=1001"], "INLINE_GEN.REVERSE_STRIDE is 1001 but"),
    ([GENERATE + "SAMPLER=dpmpp_2m_sde"], "SAMPLER is dpmpp_2m_sde but DDIM_ETA is 0.0; give"),
    ([GENERATE + "GUIDE=model"], "GUIDE is model but GUIDANCE is 1.0, which is off; give"),
    ([GENERATE + "GUIDANCE_INTERVAL=[-2, 2]"], "GUIDANCE_INTERVAL is [-2.0, 2.0] but GUIDANCE is"),
    (
        [
            NETWORK + "NUM_CLASSES=null",
            GENERATE + "GEN_TASK=random_uncond",
            GENERATE + "GUIDANCE=3",
        ],
        "GUIDANCE is 3.0 but TRAINING.NETWORK.NUM_CLASSES is null: nothing to guide",
    ),
    (
        [NETWORK + "BLOCK_SIZE=2", GENERATE + "NEW_IMAGE_SIZE=9"],
        "NEW_IMAGE_SIZE is 9 but TRAINING.NETWORK.BLOCK_SIZE is 2; give a multiple of it",
    ),
    ([GENERATE + "CLASS_LABEL=10"], "CLASS_LABEL 10 is no class"),
]


def lines(overrides: list[str]) -> list[str]:
    with pytest.raises(InputError) as caught:
        c.load(DIGITS, overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("overrides", "words"), [*BROKEN.values(), *ALSO_BROKEN], ids=lambda value: str(value)[:40]
)
def test_a_contradiction_is_one_line_that_says_what_to_do(overrides: list[str], words: str) -> None:
    (line,) = lines(overrides)
    assert words in line
    assert line.startswith(("command line: ", f"{DIGITS}:"))
    assert "; " in line


def test_every_rule_has_its_case() -> None:
    names = {rule.text.__name__ for rule in (*NETWORK_RULES, *RUN_RULES)}
    assert names == set(BROKEN)
    keys = {key for rule in (*NETWORK_RULES, *RUN_RULES) for key in rule.keys}
    assert keys <= set(items_under(Config))


def test_a_rule_says_nothing_about_a_value_that_is_wrong_by_itself() -> None:
    (line,) = lines([NETWORK + "TIMESTEPS=-5"])
    assert "TIMESTEPS is -5" in line


def test_a_rule_says_nothing_about_a_key_that_was_misspelt() -> None:
    (line,) = lines(
        [NETWORK + "CHANEL_MULTIPLIER=[1, 2, 3]", NETWORK + "HAS_ATTENTION=[no, no, no]"]
    )
    assert "did you mean TRAINING.NETWORK.CHANNEL_MULTIPLIER?" in line


@pytest.mark.parametrize(
    "overrides",
    [
        [NETWORK + "TIMESTEPS=50"],
        [HYPER + "WARMUP_STEPS=400"],
        [HYPER + "WARMUP_STEPS=9999", HYPER + "LR_TYPE=constant"],
        [HYPER + "WARMUP_STEPS=9999", HYPER + "STEPS_PER_EPOCH=null"],
        [NETWORK + "SCHEDULER=iddpm_linear", NETWORK + "TIMESTEPS=21", GENERATE + "NUM_STEPS=21"],
        ["TRAINING.PRED_TYPE=noise"],
        ["TRAINING.MICRO_BATCH=128", "CLUSTER.NUM_WORKERS=128"],
        [CROP + "AUGMENT_TYPE=rot90", "TRAINING.INPUT_IMAGE_SIZE=[8, 4]"],
        [GENERATE + "SAMPLER=ddpm", GENERATE + "DDIM_ETA=1"],
        [GENERATE + "GUIDANCE=2"],
        [GENERATE + "GUIDANCE=2", GENERATE + "GUIDE=0.9", "TRAINING.LABEL_DROP=0"],
        [GENERATE + "GUIDANCE=2", GENERATE + "GUIDANCE_INTERVAL=[-2, -2]"],
        [GENERATE + "SPACING=logsnr", GENERATE + "NUM_STEPS=1001"],
        [GENERATE + "SAMPLER=heun", GENERATE + "DDIM_ETA=0"],
        [GENERATE + "SAMPLER=dpmpp_2m", GENERATE + "DDIM_ETA=1"],
        [GENERATE + "CLASS_LABEL=[9, 9, 0]"],
        [NETWORK + "NUM_HEADS=32"],
        ["TRAINING.IS_NEW_TRAIN=false", "TRAINING.TRAINED_H5=runs/one"],
        ["TRAINING.INPUT_IMAGE_SIZE=[9, 11]"],
    ],
    ids=str,
)
def test_what_lies_just_inside_a_rule_is_accepted(overrides: list[str]) -> None:
    c.load(DIGITS, overrides)


def test_the_words_are_those_of_the_mathematics() -> None:
    assert schema.SCHEDULERS == SCHEDULES
    assert schema.PRED_TYPES == process.PRED_TYPES
    assert schema.LOSS_FNS == process.LOSS_FNS
    assert schema.LOSS_WEIGHTINGS == process.LOSS_WEIGHTINGS
    assert set(sampler_schema.SAMPLERS) == set(SAMPLERS) - {"analytic"}
    assert sampler_schema.SPACINGS == SPACINGS and rules.WHOLE == WHOLE


def test_the_arguments_are_those_of_network_and_schedule() -> None:
    config = c.load(DIGITS)
    for target, arguments in (
        (UNet, c.network_arguments(config)),
        (NoiseSchedule, c.schedule_arguments(config)),
    ):
        assert set(arguments) == set(inspect.signature(target).parameters)


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
