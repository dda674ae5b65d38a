"""No key without an effect: for every key, the test that shows something change with it.

A new key needs an entry in OBSERVED: the name of a test that fails when the key is ignored.
"""

import ast
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddpm import config as c
from ddpm.config.schema import Config, keys_under
from ddpm.diffusion.layers import DropoutKey
from ddpm.diffusion.schedule import NoiseSchedule
from ddpm.diffusion.unet import UNet

TESTS = Path(__file__).resolve().parents[1]
DIGITS = TESTS.parent / "configs" / "digits.yaml"

_DATASET = {
    "NAME": "test_the_name_tells_data_network_and_cell",
    "PATH": "test_prepare_packs_anew_when_the_source_changes",
    "LABEL_KEY": "test_label_key_names_the_labels_and_null_leaves_them_out",
    "VALIDATION_FRACTION": "test_validation_fraction_moves_images_out_of_training",
    "CACHE": "test_cache_reads_an_image_once",
    "STAGE": "test_stage_says_where_the_bytes_of_the_images_are_read",
    "PREPROCESSING.CROP_SIZE": "test_a_crop_of_another_size_is_resized",
    "PREPROCESSING.RESIZE": "test_resize_takes_the_largest_part_of_every_size",
    "PREPROCESSING.CROP_TYPE": "test_random_crops_are_not_frozen_by_the_cache",
    "PREPROCESSING.CROP_POSITION": "test_crop_positions",
    "PREPROCESSING.AUGMENT": "test_augmentations_are_equally_likely_and_drawn_by_position",
    "PREPROCESSING.AUGMENT_TYPE": "test_augmentations_are_equally_likely_and_drawn_by_position",
}
_WEIGHTS = "test_every_training_key_changes_the_weights"
_WEIGHTS_TOO = "test_min_snr_gamma_and_warmup_change_the_weights"
_DENSITY = "test_density_and_its_parameters_change_the_weights"
_REPORTS = "test_reports_come_every_epoch_and_carry_a_state_every_save_period"
_TRAINING = {
    "INPUT_IMAGE_SIZE": "test_an_accepted_network_can_be_built",
    "INPUT_IMAGE_CHANNEL": "test_every_network_key_changes_the_network",
    "OUTPUT_DIR": "test_the_name_tells_data_network_and_cell",
    **dict.fromkeys(
        (
            *("SEED", "PRED_TYPE", "LOSS_FN", "LOSS_SPACE", "LOSS_WEIGHTING", "LABEL_DROP"),
            *("STRATIFIED_TIME", "CLIP_NORM", "WEIGHT_DECAY", "PRECISION"),
            *(f"HYPER_PARAMETERS.{name}" for name in ("LEARNING_RATE", "LR_TYPE", "BATCH_SIZE")),
        ),
        _WEIGHTS,
    ),
    "MIN_SNR_GAMMA": _WEIGHTS_TOO,
    "LOSS_FLOOR": "test_the_floor_bounds_what_a_conversion_multiplies_an_error_by",
    **dict.fromkeys(("LOGSNR_DENSITY", "DENSITY_PARAMETERS", "WEIGHTED_AS"), _DENSITY),
    "HYPER_PARAMETERS.WARMUP_STEPS": _WEIGHTS_TOO,
    "HYPER_PARAMETERS.EPOCHS": _REPORTS,
    "HYPER_PARAMETERS.SAVE_PERIOD": _REPORTS,
    "HYPER_PARAMETERS.STEPS_PER_EPOCH": "test_steps_per_epoch_null_sees_every_image_once",
    "MICRO_BATCH": "test_accumulation_equals_the_big_batch",
    "COMPILE": "test_compile_follows_the_eager_run",
    "EMA_DECAYS": "test_ema_decays_are_kept_apart_and_warm_up",
    "EMA_POWER": "test_power_averages_are_tracked_beside_the_others",
    "NUMERICS": "test_exact_numerics_give_the_same_bits_for_any_number_of_workers",
    "PROFILE": "test_a_trace_of_the_steps_asked_for_is_written",
    "CHECKPOINTS_KEEP": "test_only_the_newest_checkpoints_are_kept",
    "INLINE_GEN.NUMS": "test_the_sample_grid_has_its_classes_in_rows",
    "INLINE_GEN.REVERSE_STRIDE": "test_sampling_steps_default_to_fifty_but_no_more_than_there_are",
}
_CHANGED = "test_every_network_key_changes_the_network"
_SCHEDULED = "test_every_schedule_key_changes_the_schedule"
_NETWORK = {
    **dict.fromkeys(
        (
            *("NUM_RES_BLOCKS", "BLOCK_SIZE", "NORM_GROUPS", "FIRST_CHANNEL", "NUM_HEADS"),
            *("CHANNEL_MULTIPLIER", "HAS_ATTENTION", "TIME_EMB_DIM", "DROPOUT_RATE"),
            *("KERNEL_SIZE", "USE_CROSS_ATTENTION", "NUM_CLASSES", "CLASS_EMB_DIM"),
            "KERAS_LAYERS",
        ),
        _CHANGED,
    ),
    **dict.fromkeys(("SCHEDULER", "TIMESTEPS", "ZERO_TERMINAL_SNR", "LOGSNR_SHIFT"), _SCHEDULED),
    "TIME_INPUT": "test_the_networks_input_is_time_unless_a_density_or_the_key_says_log_snr",
    "CHECKPOINT_ACTIVATIONS": "test_checkpointing_keeps_less",
}
_OPTION = "test_every_option_changes_the_images"
_INPAINT = "test_inpainting_keeps_the_known_channel_to_the_last_bit"
_GENERATION = {
    **dict.fromkeys(
        (
            *("RANDOM_SEED", "NUM_STEPS", "REVERSE_STRIDE", "DDIM_ETA"),
            *("SAMPLER", "CLIP_DENOISE", "GUIDANCE", "SPACING", "RECOMPUTE_NOISE"),
            *("GUIDE", "GUIDANCE_INTERVAL", "GUIDANCE_RESCALE"),
        ),
        _OPTION,
    ),
    "MODEL_PATH": "test_a_yaml_names_its_run_and_brings_its_own_options",
    "GEN_TASK": "test_random_uncond_is_the_null_class",
    "NUM_GEN_IMAGES": "test_an_image_depends_on_its_number_and_not_on_how_many_are_drawn",
    "EXTERNAL_NPZ_INPUT": _INPAINT,
    "FREEZE_CHANNEL": _INPAINT,
    "CLASS_LABEL": "test_class_label_chooses_the_class_of_each_image",
    "KNOWN_NOISE": "test_how_the_known_part_is_treated_changes_the_rest",
    "RESAMPLES": "test_how_the_known_part_is_treated_changes_the_rest",
    "STRENGTH": "test_the_less_strength_the_nearer_to_the_input",
    "EXPORT_INTERM": "test_export_interm_shows_the_way_from_noise_to_image",
    "EXPORT_EVERY": "test_films_are_exported_as_asked",
    "EXPORT_FORMAT": "test_films_are_exported_as_asked",
    "GEN_SAVE_DIR": "test_images_go_into_the_run_by_default",
    "PIXELS": "test_floats_come_out_in_the_units_of_the_data",
    "NEW_IMAGE_SIZE": "test_a_new_image_size_is_drawn_by_the_same_network",
}
_PAIRS = "test_num_and_seed_choose_images_and_noise_of_the_evaluation"
_EVALUATION = {
    "EVERY": "test_every_says_when_the_network_is_measured",
    **dict.fromkeys(
        ("FEATURES", "SAMPLES"), "test_features_and_samples_say_what_is_measured_of_samples"
    ),
    "WEIGHTS": "test_inception_is_opened_from_the_file_that_weights_names",
    **dict.fromkeys(("BEST", "PATIENCE"), "test_a_run_keeps_the_checkpoint_of_its_best_evaluation"),
    **dict.fromkeys(
        (
            *("SAMPLING_STEPS", "SAMPLING_METHOD", "SAMPLING_ETAS"),
            *("SAMPLING_NUM", "SAMPLING_LOGSNR"),
        ),
        "test_every_sampling_key_changes_what_is_measured",
    ),
    "SAMPLING_GUIDANCES": "test_guidance_and_averages_are_walked_one_after_another",
    "EMA_LENGTHS": "test_samples_at_the_end_are_drawn_by_each_of_ema_lengths",
    "NUM": _PAIRS,
    "SEED": _PAIRS,
}
_CLUSTER = dict.fromkeys(
    ("NUM_WORKERS", "CPUS_PER_WORKER", "GPUS_PER_WORKER"),
    "test_cluster_keys_say_what_a_run_takes",
)
_STARTS = dict.fromkeys(
    ("IS_NEW_TRAIN", "TRAINED_H5"),
    "test_trained_h5_is_where_a_training_starts_unless_it_is_new",
)
_GRIDS = dict.fromkeys(("ENABLE", "PERIOD"), "test_enable_and_period_say_when_grids_are_drawn")
_WANDB = {
    "PROJECT": "test_project_and_entity_are_where_the_tracker_goes",
    "ENTITY": "test_project_and_entity_are_where_the_tracker_goes",
    "MODE": "test_disabled_is_nothing_at_all",
    "TAGS": "test_offline_by_default_and_every_number_arrives",
    "SYSTEM": "test_system_shows_what_the_machine_does",
    "ARTIFACTS": "test_artifacts_name_data_checkpoint_and_samples_and_upload_nothing",
}
OBSERVED = {
    f"{section}.{name}": test
    for section, tests in {
        "DATASET": _DATASET,
        "TRAINING": _TRAINING | _STARTS,
        "TRAINING.INLINE_GEN": _GRIDS,
        "TRAINING.NETWORK": _NETWORK,
        "IMAGE_GENERATION": _GENERATION,
        "EVALUATION": _EVALUATION,
        "CLUSTER": _CLUSTER,
        "WANDB": _WANDB,
    }.items()
    for name, test in tests.items()
}


@cache
def files_by_test() -> dict[str, str]:
    """Name of every test function -> the text of its file, in lower case."""
    found = {}
    for path in TESTS.rglob("test_*.py"):
        text = path.read_text()
        nodes = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)]
        found.update({node.name: text.lower() for node in nodes})
    return found


def test_every_key_has_an_observable() -> None:
    assert sorted(set(keys_under(Config)) - set(OBSERVED)) == []


@pytest.mark.slow
def test_every_entry_names_a_key_and_a_test_whose_file_speaks_of_it() -> None:
    for key, name in OBSERVED.items():
        assert key in keys_under(Config)
        assert name in files_by_test(), f"{key}: no test {name}"
        assert key.rpartition(".")[2].lower() in files_by_test()[name], f"{key}: not with {name}"


def network(*overrides: str) -> UNet:
    """The network of digits.yaml with overrides, no weight of it zero."""
    built = UNet(**c.network_arguments(c.load(DIGITS, overrides)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return built


def output(built: nn.Module) -> Tensor:
    """A training-mode prediction for two fixed images."""
    x = torch.linspace(-1, 1, 2 * built.in_channels * 64).reshape(2, built.in_channels, 8, 8)
    key = DropoutKey(0, torch.arange(2))
    labels = torch.tensor([1, 3]) if built.num_classes else None
    return built(x, torch.tensor([0.3, 0.7]), labels, dropout_key=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "TRAINING.INPUT_IMAGE_CHANNEL=2",
        *(
            f"TRAINING.NETWORK.{change}"
            for change in (
                *("NUM_RES_BLOCKS=1", "BLOCK_SIZE=2", "NORM_GROUPS=4", "FIRST_CHANNEL=24"),
                *("NUM_HEADS=2", "CHANNEL_MULTIPLIER=[1,3]", "HAS_ATTENTION=[true,true]"),
                *("TIME_EMB_DIM=64", "DROPOUT_RATE=0.5", "KERNEL_SIZE=5"),
                *("USE_CROSS_ATTENTION=true", "NUM_CLASSES=11", "CLASS_EMB_DIM=32"),
                "KERAS_LAYERS=true",
            )
        ),
    ],
)
def test_every_network_key_changes_the_network(change: str) -> None:
    plain, changed = network(), network(change)
    shapes = [{n: p.shape for n, p in each.named_parameters()} for each in (plain, changed)]
    # Where the weights have the same shapes, what is computed from them must differ.
    if shapes[0] == shapes[1]:
        assert (output(plain) - output(changed)).abs().max() > 1e-4


@pytest.mark.parametrize(
    "change", ["SCHEDULER=cos6", "TIMESTEPS=999", "ZERO_TERMINAL_SNR=true", "LOGSNR_SHIFT=1"]
)
def test_every_schedule_key_changes_the_schedule(change: str) -> None:
    plain, changed = (
        NoiseSchedule(**c.schedule_arguments(c.load(DIGITS, overrides))).alphas_cumprod
        for overrides in ([], [f"TRAINING.NETWORK.{change}"])
    )
    assert plain.shape != changed.shape or (plain - changed).abs().max() > 1e-5


@pytest.mark.slow
def test_checkpointing_keeps_less() -> None:
    def kept(built: UNet) -> int:
        sizes: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output(built)
        return sum(sizes)

    change = "TRAINING.NETWORK.CHECKPOINT_ACTIVATIONS=true"
    assert kept(network(change)) < kept(network()) / 2
