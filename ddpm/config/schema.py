"""Every key of the configuration: type, default, limits and meaning, a frozen dataclass a section.

Keys and defaults are DDPM v3's; keys that v3 lacks default to v3's behaviour. A section checks its
values however it is built (pydantic), and raises InputError in the words of `describe`. What ties
keys together is in rules.py, how YAML text becomes a value in loading.py.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform, get_args

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from ddpm.errors import InputError

T = TypeVar("T")
Value = bool | int | float | str | None | tuple["Value", ...]

SAFE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# as ECMAScript reads them too, for editors
_NAME, _NON_EMPTY, _FOLDER = rf"^{SAFE_NAME}$", r"\S", r"^([oO][fF][fF]$|[/$][\s\S])"
_LARGEST = 2**31 - 1
_LARGEST_SEED = 2**63 - 1


def _printable(text: str) -> str:
    # a newline may be part of a path, however odd; other control characters are accidents, and
    # ??? is OmegaConf's word for a value that is still to be given
    if not text.replace("\n", "").isprintable() or text == "???":
        raise ValueError("not printable")
    return text


class _Different:
    """A list without repetition."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {**handler(schema), "uniqueItems": True}

    @staticmethod
    def check(items: tuple[T, ...]) -> tuple[T, ...]:
        if len(set(items)) < len(items):
            raise ValueError("not all different")
        return items


_PRINTABLE = AfterValidator(_printable)
all_different = _Different()

Flag = Annotated[bool, Strict()]
Int = Annotated[int, Strict()]
# A number of things without an upper limit of its own; `le` beside it would not count.
Count = Annotated[int, Strict(), Field(ge=1, le=_LARGEST)]
Number = Annotated[float, Strict()]
LogSnr = Annotated[float, Strict(), Field(ge=-100, le=100)]
Share = Annotated[float, Strict(), Field(ge=0, le=1)]
Text = Annotated[str, Strict(), Field(pattern=_NON_EMPTY), _PRINTABLE]
Name = Annotated[str, Strict(), Field(pattern=_NAME), _PRINTABLE]


_REQUIRED: Any = ...


def option(default: T, meaning: str, *, machine: bool = False, **limits: Any) -> T:
    """A key with its meaning and pydantic's limits (ge, le, gt, lt, min_length).

    machine: says where or how a run is executed, not what it computes; no part of its identity.
    """
    extra: Any = {"machine": True} if machine else None
    return cast(T, Field(default, description=meaning, json_schema_extra=extra, **limits))


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked; what is refused is an InputError."""
    checked: Any = dataclass(
        frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False)
    )(cls)
    validate = checked.__init__

    def __init__(self: object, **values: object) -> None:
        try:
            validate(self, **values)
        except ValidationError as error:
            lines = dict.fromkeys(
                f"{cls.__name__}: {name} is {show(values.get(name))}; allowed: {allowed(cls, name)}"
                for name in (str(one["loc"][0]) for one in error.errors())
            )
            raise InputError(list(lines)) from None

    checked.__init__ = __init__
    return cast(type[T], checked)


Scheduler = Literal[
    "linear",
    "cosine",
    "cos6",
    "cos6_85",
    "iddpm_linear",
    "iddpm_cosine",
    "sigmoid",
    "laplace",
    "shifted_cosine",
]
PredType = Literal["noise", "image", "velocity", "edm", "flow"]
LossFn = Literal["MSE", "MAE", "HUBER"]
LossWeighting = Literal["uniform", "snr", "truncated_snr", "min_snr", "p2"]
Density = Literal["schedule", "uniform", "logit_normal", "edm", "laplace", "adaptive"]
Augmentation = Literal["horizontal_flip", "vertical_flip", "flip", "rot90"]
Sampler = Literal["ddim", "ddpm", "heun", "dpmpp_2m", "dpmpp_2m_sde"]
Spacing = Literal["trailing", "linspace", "logsnr", "karras", "flow"]
SCHEDULERS: tuple[str, ...] = get_args(Scheduler)


@section
class Preprocessing:
    """Changes of each image as it is read."""

    CROP_SIZE: Count | None = option(
        None, "Side of the square cropped before resizing, pixels; null = INPUT_IMAGE_SIZE"
    )
    RESIZE: Flag = option(
        False,
        "Crop the largest part that an image has of INPUT_IMAGE_SIZE's shape, of whatever size, "
        "and resize it; not with CROP_SIZE",
    )
    CROP_TYPE: Literal["center", "random"] = option("center", "Where the crop lies")
    CROP_POSITION: Literal["center", "top_left", "top_right", "bottom_left", "bottom_right"] = (
        option("center", "Corner or centre the crop is taken from when CROP_TYPE is center")
    )
    AUGMENT: Flag = option(False, "Apply AUGMENT_TYPE at random to every training image")
    AUGMENT_TYPE: Augmentation | None = option(None, "The augmentation")


@section
class DatasetSection:
    """The images."""

    NAME: Name = option(_REQUIRED, "Name of the data, part of the run directory's name")
    PATH: Text = option(
        _REQUIRED,
        "NPZ, NPY or HDF5 file, image folder, IDX files, Parquet file or folder of them, LMDB, "
        "EDM's ZIP, CIFAR-10's binary archive, folder of shards, or `digits`",
        machine=True,
    )
    LABEL_KEY: Text | None = option(
        "labels",
        "Key of the labels in NPZ and Parquet; folders: sub-folders are classes unless null",
    )
    VALIDATION_FRACTION: Number = option(
        0.1, "Share of images kept out of training, unless the data come split", ge=0, lt=1
    )
    CACHE: Literal["off", "memory"] = option("off", "Keep decoded images in memory", machine=True)
    STAGE: Annotated[str, Strict(), Field(pattern=_FOLDER), _PRINTABLE] = option(
        "off", "Folder on the node's own disk that shards are copied to first", machine=True
    )
    PREPROCESSING: Preprocessing = Preprocessing()


@section
class InlineGen:
    """Sample grids drawn while training."""

    ENABLE: Flag = option(True, "Draw sample grids during training")
    NUMS: Int = option(20, "Images in a grid", ge=1, le=10_000)
    PERIOD: Count = option(10, "Epochs between grids")
    REVERSE_STRIDE: Count | None = option(
        None, "Timesteps per reverse step; null = min(50, TIMESTEPS) evenly spaced steps"
    )


@section
class HyperParameters:
    """Length of training and learning rate."""

    EPOCHS: Count = option(100, "Epochs to train")
    SAVE_PERIOD: Count | None = option(10, "Epochs between checkpoints; null = only at the end")
    BATCH_SIZE: Int = option(64, "Images of one optimizer step, over all workers", ge=1, le=10**6)
    STEPS_PER_EPOCH: Count | None = option(
        None, "Optimizer steps called an epoch; null = ceil(training images / BATCH_SIZE)"
    )
    LR_TYPE: Literal["constant", "warmup_cosine", "cosine_decay"] = option(
        "warmup_cosine", "Learning-rate curve"
    )
    LEARNING_RATE: Number = option(2e-4, "Peak learning rate", gt=0, le=1e4)
    WARMUP_STEPS: Int | None = option(
        1000, "Steps of linear warm-up in warmup_cosine; null = none", ge=0, le=_LARGEST
    )


@section
class NetworkSection:
    """The noise schedule and the U-Net."""

    SCHEDULER: Scheduler = option("cosine", "Noise schedule")
    TIMESTEPS: Int = option(1000, "Timesteps T of the diffusion", ge=1, le=10**6)
    ZERO_TERMINAL_SNR: Flag = option(False, "Rescale the schedule to pure noise at t = T")
    LOGSNR_SHIFT: Number = option(
        0.0, "Added to the log signal-to-noise ratio of the schedule", ge=-20, le=20
    )
    TIME_INPUT: Literal["time", "logsnr", "timestep", "flow"] | None = option(
        None,
        "What the network sees of the noise level: the time t / TIMESTEPS, log SNR, or the time of "
        "the straight path; null = logsnr for PRED_TYPE edm, flow for flow, for others time where "
        "LOGSNR_DENSITY is schedule or adaptive, else logsnr; timestep = t itself, as v3, whatever "
        "TIMESTEPS",
    )
    KERAS_LAYERS: Flag | None = option(
        None,
        "Layers and TIME_INPUT as DDPM v3 has them in Keras; null = where TRAINED_H5 is a Keras "
        "file (docs/from_v3.md)",
    )
    NUM_RES_BLOCKS: Int = option(2, "Residual blocks per level", ge=1, le=64)
    BLOCK_SIZE: Int = option(1, "Space-to-depth factor; must divide the image size", ge=1, le=1024)
    NORM_GROUPS: Count = option(8, "Groups of the group normalisation; must divide every width")
    FIRST_CHANNEL: Int = option(
        128, "Width that CHANNEL_MULTIPLIER multiplies, channels", ge=1, le=65_536
    )
    CHANNEL_MULTIPLIER: tuple[Annotated[int, Strict(), Field(ge=1, le=1024)], ...] = option(
        (1, 2, 4, 8), "Width of each level over FIRST_CHANNEL", min_length=1
    )
    HAS_ATTENTION: tuple[Flag, ...] = option(
        (False, False, True, True), "Self-attention at each level", min_length=1
    )
    NUM_HEADS: Count = option(1, "Attention heads; must divide the widths that attend")
    TIME_EMB_DIM: Int = option(128, "Width of the time embedding, even", ge=4, le=65_536)
    DROPOUT_RATE: Number = option(0.1, "Dropout inside residual blocks", ge=0, lt=1)
    KERNEL_SIZE: Int = option(3, "Side of the convolutions, odd, pixels", ge=1, le=31)
    USE_CROSS_ATTENTION: Flag = option(False, "Attend to the embeddings of time and class too")
    NUM_CLASSES: Int | None = option(None, "Classes; null = unconditional", ge=1, le=10**6)
    CLASS_EMB_DIM: Int | None = option(
        None, "Width of the class embedding; null = TIME_EMB_DIM", ge=1, le=65_536
    )
    CHECKPOINT_ACTIVATIONS: Flag = option(
        False, "Recompute activations: less memory, about a third slower"
    )


_DensityParameter = Annotated[float, Strict(), Field(ge=-20, le=20)]
_Side = Annotated[int, Strict(), Field(ge=1, le=8192)]


def _square(size: int | tuple[int, int]) -> int | tuple[int, int]:
    # [28, 28] and 28 are one run
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def is_keras_file(path: str) -> bool:
    """Whether a file of weights is one of Keras, by its name."""
    return path.lower().endswith((".h5", ".hdf5", ".keras"))


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """INPUT_IMAGE_SIZE as (height, width)."""
    return (size, size) if isinstance(size, int) else size


@section
class Training:
    """The training: network, objective, optimizer."""

    INPUT_IMAGE_SIZE: Annotated[_Side | tuple[_Side, _Side], AfterValidator(_square)] = option(
        256, "Image side, or [height, width], pixels"
    )
    INPUT_IMAGE_CHANNEL: Int = option(3, "Channels of an image", ge=1, le=4096)
    OUTPUT_DIR: Text = option("./training_outputs", "Where runs are kept", machine=True)
    IS_NEW_TRAIN: Flag = option(True, "false = start from the weights of TRAINED_H5")
    TRAINED_H5: Text | None = option(None, "A run, a checkpoint or a v3 `.h5` to start from")
    PRED_TYPE: PredType = option(
        "velocity",
        "What the network predicts; edm = Karras' preconditioned output, flow = noise - image",
    )
    LOSS_FN: LossFn = option("MSE", "Loss per element")
    LOSS_SPACE: PredType | None = option(None, "What the loss compares; null = PRED_TYPE")
    LOSS_FLOOR: Number | None = option(
        None,
        "Least denominator of the conversion from PRED_TYPE to LOSS_SPACE, JiT's 0.05; null = none",
        gt=0,
        lt=1,
    )
    LOSS_WEIGHTING: LossWeighting = option("uniform", "Weight of the loss by noise level")
    MIN_SNR_GAMMA: Number = option(5.0, "Gamma of LOSS_WEIGHTING min_snr", gt=0, le=1e6)
    LOGSNR_DENSITY: Density = option(
        "schedule",
        "Density of log SNR in training; schedule = uniform timesteps of SCHEDULER, which images "
        "are drawn by all the same; adaptive = the same objective, drawn oftener where the loss is "
        "large",
    )
    WEIGHTED_AS: Literal["uniform", "logit_normal", "edm", "laplace"] | None = option(
        None,
        "Losses are weighed as though log SNR were drawn by this density, with the parameters of "
        "its paper; null = as it is drawn",
    )
    DENSITY_PARAMETERS: tuple[_DensityParameter, _DensityParameter] | None = option(
        None,
        "Of LOGSNR_DENSITY: uniform [lowest, highest] log SNR, null = [-10, 10]; logit_normal "
        "[mean, deviation] of the logit of flow time, [0, 1]; edm of ln sigma, [-1.2, 1.2]; "
        "laplace [centre, scale] of log SNR, [0, 0.5]",
    )
    STRATIFIED_TIME: Flag = option(False, "Spread a batch's timesteps evenly over 1..T")
    LABEL_DROP: Share = option(0.1, "Share of labels replaced by the null class in training")
    SEED: Int = option(
        0, "Seed of initialisation, order, noise, timesteps and dropout", ge=0, le=_LARGEST_SEED
    )
    MICRO_BATCH: Count | None = option(
        None, "Images of one forward pass; null = a worker's share of the batch"
    )
    PRECISION: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the network")
    NUMERICS: Literal["fast", "exact"] = option("fast", "exact = deterministic kernels only")
    COMPILE: Flag = option(False, "Compile the network with torch.compile")
    CLIP_NORM: Number | None = option(
        1.0, "Largest global norm of the gradient; null = no clipping", gt=0, le=1e9
    )
    WEIGHT_DECAY: Number = option(0.0, "Weight decay of AdamW", ge=0, le=10)
    EMA_DECAYS: Annotated[
        tuple[Annotated[float, Strict(), Field(ge=0, lt=1)], ...], all_different
    ] = option((0.999,), "Decays of the averaged weights; the first is sampled from", min_length=1)
    EMA_POWER: Annotated[
        tuple[Annotated[float, Strict(), Field(gt=0, lt=0.28)], ...], all_different
    ] = option(
        (),
        "Lengths of averages with a power-function profile, as shares of the training, such as "
        "[0.05, 0.1]; they are kept at every SAVE_PERIOD, and any length can be made of them later",
    )
    CHECKPOINTS_KEEP: Count = option(3, "Newest checkpoints kept", machine=True)
    PROFILE: Int = option(0, "Optimizer steps to profile", ge=0, le=10_000, machine=True)
    INLINE_GEN: InlineGen = InlineGen()
    HYPER_PARAMETERS: HyperParameters = HyperParameters()
    NETWORK: NetworkSection = NetworkSection()

    @property
    def draws_timesteps(self) -> bool:
        """Whether noise levels are timesteps of the schedule and the objective is theirs, as under
        adaptive, or levels of a density of log SNR.
        """
        return self.LOGSNR_DENSITY in ("schedule", "adaptive")


@section
class ImageGeneration:
    """Images drawn from a trained network: how, and what (ddpm/sampling/tasks.py)."""

    REVERSE_STRIDE: Count | None = option(None, "Timesteps per reverse step; not with NUM_STEPS")
    NUM_STEPS: Int | None = option(
        None, "Reverse steps, spaced by SPACING; both null = min(50, TIMESTEPS)", ge=1, le=10**6
    )
    SPACING: Spacing = option(
        "trailing",
        "Where the steps lie: evenly from T down, evenly from T to 1, even in log SNR, Karras' "
        "rho 7, or even in the time of the straight path; the last three may exceed TIMESTEPS",
    )
    SAMPLER: Sampler = option(
        "ddim",
        "ddim with DDIM_ETA; ddpm = ancestral, eta 1; heun = 2nd order, two network calls a step; "
        "dpmpp_2m = DPM-Solver++, one call, and _sde with noise",
    )
    DDIM_ETA: Share = option(1.0, "Noise of a reverse step of ddim: 0 none, 1 that of DDPM")
    GUIDANCE: Number = option(1.0, "Guidance away from a worse prediction; 1 = off", ge=0, le=100)
    GUIDE: Text | None = option(
        None,
        "The worse prediction: null = of the null class; else of other weights: `model`, an EMA "
        "decay such as 0.9, or another run or checkpoint",
    )
    GUIDANCE_INTERVAL: tuple[LogSnr, LogSnr] | None = option(
        None, "[lowest, highest] log SNR that is guided; null = all"
    )
    GUIDANCE_RESCALE: Share = option(
        0.0, "Share of the plain prediction's standard deviation given back"
    )
    CLIP_DENOISE: Flag = option(
        False, "Clip the estimate of the clean image to [-1, 1] at every step"
    )
    RECOMPUTE_NOISE: Flag = option(True, "After CLIP_DENOISE, make the noise fit the clipped image")
    GEN_TASK: Literal["random_uncond", "class_cond", "channel_inpaint", "inpaint", "sdedit"] = (
        option("random_uncond", "What is drawn")
    )
    EXTERNAL_NPZ_INPUT: Text | None = option(
        None,
        "NPZ with `images` (N, H, W, C) in [0, 1], the base of channel_inpaint, inpaint, sdedit; "
        "inpaint needs `mask` (H, W) or (N, H, W) too, true where the image is known",
    )
    CLASS_LABEL: (
        Annotated[int, Strict(), Field(ge=0, le=10**6)]
        | Annotated[
            tuple[Annotated[int, Strict(), Field(ge=0, le=10**6)], ...], Field(min_length=1)
        ]
        | None
    ) = option(None, "Class or classes, in turn; null = every class for class_cond, else none")
    FREEZE_CHANNEL: Int | None = option(
        None, "The known channel of channel_inpaint, from 0", ge=0, le=_LARGEST
    )
    KNOWN_NOISE: Literal["fixed", "fresh", "none"] = option(
        "fixed",
        "Noise of a step on what inpainting keeps: fixed = that the image starts from, fresh = "
        "another at every step, none = kept clean, as v3 does",
    )
    RESAMPLES: Int | None = option(
        None,
        "How often inpainting takes each step again (RePaint); 0 = never, null = 8 for "
        "channel_inpaint and inpaint",
        ge=0,
        le=15,
    )
    STRENGTH: Number = option(
        0.5, "Noise level that sdedit begins at: its time, 1 = pure noise", gt=0, le=1
    )
    MODEL_PATH: Annotated[str, Strict(), _PRINTABLE] = option(
        "", "The run or checkpoint to draw from"
    )
    NUM_GEN_IMAGES: Int = option(20, "Images to draw", ge=1, le=10**9)
    EXPORT_INTERM: Flag = option(False, "Export the states between noise and image too")
    EXPORT_EVERY: Count | None = option(
        None, "Steps between exported states; null = ten states, evenly spaced"
    )
    EXPORT_FORMAT: Literal["strip", "gif"] = option(
        "strip", "Exported states as one picture or as a film"
    )
    GEN_SAVE_DIR: Text | None = option(None, "Where images go; null = inside the run")
    PIXELS: Literal["uint8", "float"] | None = option(
        None,
        "Images as bytes, or as floats in the units of the data, in [0, 1] where these were not "
        "scaled in packing; null = floats where they were",
    )
    RANDOM_SEED: Int | None = option(None, "Seed of the draws; null = 0", ge=0, le=_LARGEST_SEED)
    NEW_IMAGE_SIZE: Int | None = option(
        None, "Side of the images drawn, pixels; null = INPUT_IMAGE_SIZE", ge=1, le=8192
    )


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number by which trained networks are compared, `val_NAME` among those of a training.

    title: in sentences and tables.  of: numbers of "x0-error", and of "samples" of as many network
    calls, compare all networks.  key: in sample_quality.json and statistics.json.  sign: -1 where
    higher is better.
    """

    title: str
    of: Literal["x0-error", "samples", "training", "likelihood"]
    key: str
    sign: int = 1


MEASURES: Mapping[str, Measure] = {
    "mean_log10_mse": Measure(title="mean log10 error", of="x0-error", key="mean_log10_mse"),
    "snr_weighted_mse": Measure(title="SNR-weighted error", of="x0-error", key="snr_weighted_mse"),
    # FID extrapolated to infinitely many samples
    "fid_infinity": Measure(title="FID\u221e", of="samples", key="fid"),
    "kid": Measure(title="KID", of="samples", key="kid"),
    "class_accuracy": Measure(title="class accuracy", of="samples", key="accuracy", sign=-1),
    "loss": Measure(title="loss", of="training", key="loss"),
    "bits_per_dim": Measure(title="bits/dim", of="likelihood", key="bits_per_dim"),
}
X0_MEASURES = tuple(name for name, one in MEASURES.items() if one.of == "x0-error")


@section
class Evaluation:
    """Measures that compare trained networks, while they train and at the end."""

    SAMPLING_STEPS: Annotated[
        tuple[Annotated[int, Strict(), Field(ge=1, le=10**6)], ...], all_different
    ] = option(
        (),
        "At the end, draw SAMPLING_NUM images in each of these numbers of steps, such as "
        "[10, 50], and measure FID, KID and class accuracy; [] = never",
    )
    SAMPLING_METHOD: Literal["ddim", "heun", "dpmpp_2m"] = option(
        "ddim",
        "The sampler of these walks: heun calls the network twice a step, ddim and DPM-Solver++ "
        "once",
    )
    SAMPLING_ETAS: Annotated[tuple[Share, ...], all_different] = option(
        (0.0,),
        "Each of SAMPLING_STEPS is walked with each eta of ddim: 0 no noise, 1 that of DDPM",
        min_length=1,
    )
    SAMPLING_GUIDANCES: Annotated[
        tuple[Annotated[float, Strict(), Field(ge=0, le=100)], ...], all_different
    ] = option(
        (1.0,),
        "Guidance away from the null class in these walks; 1 = off: each number of steps is walked "
        "with the first, the most steps with the others too",
        min_length=1,
    )
    EMA_LENGTHS: Annotated[
        tuple[Annotated[float, Strict(), Field(gt=0, lt=0.28)], ...], all_different
    ] = option(
        (),
        "These walks are drawn by averages of each of these lengths, made of the snapshots of "
        "TRAINING.EMA_POWER; [] = by the first of EMA_DECAYS; TUNE.WITHIN chooses one in each cell",
    )
    SAMPLING_NUM: Int = option(
        512, "Images drawn for each of these, the same for every run", ge=64, le=_LARGEST
    )
    SAMPLING_LOGSNR: Annotated[tuple[LogSnr, LogSnr], all_different] | Literal["data"] | None = (
        option(
            None,
            "[lowest, highest] log SNR of these walks, evenly spaced between, the same for every "
            "noise "
            "schedule; data = the window over which errors are averaged (docs/metrics.md); null = "
            "evenly spaced timesteps of the run's own",
        )
    )
    EVERY: Count | None = option(None, "Epochs between evaluations; null = only at the end")
    NUM: Count = option(256, "Validation images evaluated")
    FEATURES: Literal["classifier", "pixels", "inception"] | None = option(
        None,
        "Draw SAMPLES images at every evaluation while training, and compare them by these; "
        "null = only networks are compared",
    )
    WEIGHTS: Text | None = option(
        None,
        "File with the weights of FEATURES inception, safetensors (docs/metrics.md)",
        machine=True,
    )
    SAMPLES: Int = option(
        1024, "Images drawn at every evaluation where FEATURES are given", ge=64, le=_LARGEST
    )
    BEST: Literal["mean_log10_mse", "snr_weighted_mse", "fid_infinity", "kid"] | None = option(
        None, "Measure whose best, lowest evaluation has its checkpoint kept; null = none"
    )
    PATIENCE: Count | None = option(
        None, "Evaluations without a better BEST after which training ends; null = never"
    )
    SEED: Int = option(
        0, "Seed of the split, evaluation noise and sample grids", ge=0, le=_LARGEST_SEED
    )


@section
class Cluster:
    """Cores, GPUs and workers of a run; null = all there are."""

    NUM_WORKERS: Int | None = option(
        None, "Training processes; null = one a GPU, else one", ge=1, le=65_536, machine=True
    )
    CPUS_PER_WORKER: Int | None = option(None, "Cores of a worker", ge=1, le=4096, machine=True)
    GPUS_PER_WORKER: Number | None = option(
        None, "GPUs of a worker, fractions allowed", ge=0, le=64, machine=True
    )


@section
class Wandb:
    """Weights & Biases."""

    MODE: Literal["offline", "online", "disabled"] = option(
        "offline", "Where metrics are mirrored", machine=True
    )
    PROJECT: Name = option("ddpm", "Project", machine=True)
    ENTITY: Name | None = option(None, "User or team", machine=True)
    TAGS: Annotated[tuple[Name, ...], all_different] = option((), "Tags of the run", machine=True)
    SYSTEM: Flag = option(
        False, "Show the use of cores, memory and GPUs by time there too", machine=True
    )
    ARTIFACTS: Flag = option(
        False,
        "Name data, last checkpoint and samples there by path and SHA-256; nothing is uploaded",
        machine=True,
    )


@section
class Config:
    """A whole configuration."""

    DATASET: DatasetSection
    TRAINING: Training = Training()
    IMAGE_GENERATION: ImageGeneration = ImageGeneration()
    EVALUATION: Evaluation = Evaluation()
    CLUSTER: Cluster = Cluster()
    WANDB: Wandb = Wandb()


@cache
def sections_under(root: type) -> Mapping[str, type]:
    """Dotted name -> dataclass of a section and all below it; the root is ""."""
    found = {"": root}
    for name, field in _fields(root).items():
        if is_dataclass(field.annotation):
            for below, cls in sections_under(cast(type, field.annotation)).items():
                found[f"{name}.{below}".rstrip(".")] = cls
    return found


@cache
def keys_under(root: type) -> Mapping[str, FieldInfo]:
    """Dotted key -> its field, of a section and all below it."""
    return {
        f"{name}.{key}".lstrip("."): field
        for name, cls in sections_under(root).items()
        for key, field in _fields(cls).items()
        if not is_dataclass(field.annotation)
    }


def _fields(cls: type) -> Mapping[str, FieldInfo]:
    return cast(Any, cls).__pydantic_fields__


def is_machine(field: FieldInfo) -> bool:
    """Whether a key says where or how a run is executed, not what it computes."""
    return bool(field.json_schema_extra)


@cache
def json_schema(root: type = Config) -> dict[str, Any]:
    """JSON schema of a configuration or a section, with which editors complete and check YAML."""
    return TypeAdapter(root).json_schema()


def allowed(cls: type, name: str) -> str:
    """The values that a key of a section may have, in words."""
    known = json_schema(cls)["properties"].get(name)
    return f"a key of {cls.__name__}" if known is None else _describe(known)


def _describe(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return ", or ".join(_describe(one) for one in schema["anyOf"])
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a finite number") + _range(schema)
    if kind == "array":
        items = schema.get("prefixItems")
        count = f"{len(items)} " if items else ""
        some = "list" if items or not schema.get("minItems") else "non-empty list"
        each = _describe(items[0] if items else schema["items"])
        different = ", all different" if schema.get("uniqueItems") else ""
        return f"a {some} of {count}values, each {each}{different}"
    texts = {
        None: "text",
        _NON_EMPTY: "non-empty text",
        _NAME: "a name of at most 64 letters, digits, '.', '_', '-'",
        _FOLDER: "off or an absolute path",
    }
    words = {"boolean": "true or false", "null": "null"}
    return words.get(str(kind)) or texts[schema.get("pattern")]


def _range(schema: Mapping[str, Any]) -> str:
    low, high, above, below = (
        int(bound) if isinstance(bound := schema.get(key), float) and bound == int(bound) else bound
        for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
    )
    high = None if high == _LARGEST else high
    if low is not None and high is not None:
        return f" from {low} to {high}"
    bounds = {
        "of at least": low,
        "above": above,
        "below": below,
        "of at most": high,
    }
    words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
    return " " + " and ".join(words) if words else ""


class Plain(str):
    """A YAML scalar that stood unquoted, and is shown so."""


def show(value: object) -> str:
    """A value as one would write it in YAML, on one line, shortened."""
    if isinstance(value, Plain):
        text = value if value.isprintable() else repr(str(value))
    elif isinstance(value, dict):
        text = "a section"
    elif isinstance(value, (list, tuple)):
        text = "[" + ", ".join(show(item) for item in value) + "]"
    elif isinstance(value, float):
        text = repr(value)
    else:
        text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: object) -> object:
    """Tuples as lists, for YAML and JSON."""
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known name closest to a misspelt one, if any is close."""
    by_lower = {name.lower(): name for name in known}
    match = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None
