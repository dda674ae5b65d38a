"""Every key of the configuration, with type, default, limits and meaning: one dataclass a section.

Keys and defaults are DDPM v3's; keys that v3 lacks default to v3's behaviour. `config.explain()`
prints this file as a table; network_rules.py and run_rules.py hold what ties keys together.
"""

from dataclasses import dataclass

from ddpm.evaluation_schema import Evaluation
from ddpm.options import Section, option, required
from ddpm.task_schema import TaskOptions
from ddpm.values import LOCAL_FOLDER, SAFE_NAME

SCHEDULERS = tuple(
    "linear cosine cos6 cos6_85 iddpm_linear iddpm_cosine sigmoid laplace shifted_cosine".split()
)
PRED_TYPES = ("noise", "image", "velocity")
LOSS_FNS = ("MSE", "MAE", "HUBER")
LOSS_WEIGHTINGS = ("uniform", "snr", "truncated_snr", "min_snr", "p2")
CROP_POSITIONS = ("center", "top_left", "top_right", "bottom_left", "bottom_right")
AUGMENT_TYPES = ("horizontal_flip", "vertical_flip", "flip", "rot90")
LR_TYPES = ("constant", "warmup_cosine", "cosine_decay")
_SOME_TEXT = r"(?s).*\S.*"
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Section):
    """What is done to each image as it is read."""

    CROP_SIZE: int | None = option(
        None, "Side of the square cropped before resizing, pixels; null = INPUT_IMAGE_SIZE", low=1
    )
    CROP_TYPE: str = option("center", "Where the crop lies", choices=("center", "random"))
    CROP_POSITION: str = option(
        "center",
        "Corner or centre the crop is taken from when CROP_TYPE is center",
        choices=CROP_POSITIONS,
    )
    AUGMENT: bool = option(False, "Apply AUGMENT_TYPE at random to every training image")
    AUGMENT_TYPE: str | None = option(None, "The augmentation", choices=AUGMENT_TYPES)


@dataclass(frozen=True, kw_only=True)
class Dataset(Section):
    """The images."""

    NAME: str = required("Name of the data, part of the run directory's name", pattern=SAFE_NAME)
    PATH: str = required(
        "NPZ file, image folder, IDX files, folder of shards, or `digits`",
        pattern=_SOME_TEXT,
        is_machine=True,
    )
    LABEL_KEY: str | None = option(
        "labels",
        "Key of the labels in the NPZ; folders: sub-folders are classes unless null",
        pattern=_SOME_TEXT,
    )
    VALIDATION_FRACTION: float = option(0.1, "Share of images kept out of training", low=0, below=1)
    CACHE: str = option(
        "off", "Keep decoded images in memory", choices=("off", "memory"), is_machine=True
    )
    STAGE: str = option(
        "off", "Copy shards to the node's own disk first", pattern=LOCAL_FOLDER, is_machine=True
    )
    PREPROCESSING: Preprocessing = Preprocessing()


@dataclass(frozen=True, kw_only=True)
class InlineGen(Section):
    """Sample grids drawn while training."""

    ENABLE: bool = option(True, "Draw sample grids during training")
    NUMS: int = option(20, "Images in a grid", low=1, high=10_000)
    PERIOD: int = option(10, "Epochs between grids", low=1)
    REVERSE_STRIDE: int | None = option(
        None, "Timesteps per reverse step; null = min(50, TIMESTEPS) evenly spaced steps", low=1
    )


@dataclass(frozen=True, kw_only=True)
class HyperParameters(Section):
    """Length of training and learning rate."""

    EPOCHS: int = option(100, "Epochs to train", low=1)
    SAVE_PERIOD: int | None = option(
        10, "Epochs between checkpoints; null = only at the end", low=1
    )
    BATCH_SIZE: int = option(
        64, "Images of one optimizer step, over all workers", low=1, high=10**6
    )
    STEPS_PER_EPOCH: int | None = option(
        None, "Optimizer steps called an epoch; null = ceil(training images / BATCH_SIZE)", low=1
    )
    LR_TYPE: str = option("warmup_cosine", "Learning-rate curve", choices=LR_TYPES)
    LEARNING_RATE: float = option(2e-4, "Peak learning rate", above=0, high=1e4)
    WARMUP_STEPS: int | None = option(
        1000, "Steps of linear warm-up in warmup_cosine; null = none", low=0
    )


@dataclass(frozen=True, kw_only=True)
class Network(Section):
    """The noise schedule and the U-Net."""

    SCHEDULER: str = option("cosine", "Noise schedule", choices=SCHEDULERS)
    TIMESTEPS: int = option(1000, "Timesteps T of the diffusion", low=1, high=10**6)
    ZERO_TERMINAL_SNR: bool = option(False, "Rescale the schedule to pure noise at t = T")
    LOGSNR_SHIFT: float = option(
        0.0, "Added to the log signal-to-noise ratio of the schedule", low=-20, high=20
    )
    NUM_RES_BLOCKS: int = option(2, "Residual blocks per level", low=1, high=64)
    BLOCK_SIZE: int = option(
        1, "Space-to-depth factor; must divide the image size", low=1, high=1024
    )
    NORM_GROUPS: int = option(
        8, "Groups of the group normalisation; must divide every width", low=1
    )
    FIRST_CHANNEL: int = option(
        128, "Width that CHANNEL_MULTIPLIER multiplies, channels", low=1, high=65_536
    )
    CHANNEL_MULTIPLIER: tuple[int, ...] = option(
        (1, 2, 4, 8), "Width of each level over FIRST_CHANNEL", low=1, high=1024, min_items=1
    )
    HAS_ATTENTION: tuple[bool, ...] = option(
        (False, False, True, True), "Self-attention at each level", min_items=1
    )
    NUM_HEADS: int = option(1, "Attention heads; must divide the widths that attend", low=1)
    TIME_EMB_DIM: int = option(128, "Width of the time embedding, even", low=4, high=65_536)
    DROPOUT_RATE: float = option(0.1, "Dropout inside residual blocks", low=0, below=1)
    KERNEL_SIZE: int = option(3, "Side of the convolutions, odd, pixels", low=1, high=31)
    USE_CROSS_ATTENTION: bool = option(False, "Attend to the embeddings of time and class too")
    NUM_CLASSES: int | None = option(None, "Classes; null = unconditional", low=1, high=10**6)
    CLASS_EMB_DIM: int | None = option(
        None, "Width of the class embedding; null = TIME_EMB_DIM", low=1, high=65_536
    )
    CHECKPOINT_ACTIVATIONS: bool = option(
        False, "Recompute activations: less memory, about a third slower"
    )


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """What is trained, on what, how."""

    INPUT_IMAGE_SIZE: int | tuple[int, int] = option(
        256, "Image side, or [height, width], pixels", low=1, high=8192
    )
    INPUT_IMAGE_CHANNEL: int = option(3, "Channels of an image", low=1, high=4096)
    OUTPUT_DIR: str = option(
        "./training_outputs", "Where runs are kept", pattern=_SOME_TEXT, is_machine=True
    )
    IS_NEW_TRAIN: bool = option(True, "false = start from the weights of TRAINED_H5")
    TRAINED_H5: str | None = option(None, "A run or checkpoint to start from", pattern=_SOME_TEXT)
    PRED_TYPE: str = option("velocity", "What the network predicts", choices=PRED_TYPES)
    LOSS_FN: str = option("MSE", "Loss per element", choices=LOSS_FNS)
    LOSS_SPACE: str | None = option(
        None, "What the loss compares; null = PRED_TYPE", choices=PRED_TYPES
    )
    LOSS_WEIGHTING: str = option(
        "uniform", "Weight of the loss by noise level", choices=LOSS_WEIGHTINGS
    )
    MIN_SNR_GAMMA: float = option(5.0, "Gamma of LOSS_WEIGHTING min_snr", above=0, high=1e6)
    STRATIFIED_TIME: bool = option(False, "Spread a batch's timesteps evenly over 1..T")
    LABEL_DROP: float = option(
        0.1, "Share of labels replaced by the null class in training", low=0, high=1
    )
    SEED: int = option(
        0, "Seed of initialisation, order, noise, timesteps and dropout", low=0, high=_LARGEST_SEED
    )
    MICRO_BATCH: int | None = option(
        None, "Images of one forward pass; null = a worker's share of the batch", low=1
    )
    PRECISION: str = option("fp32", "Arithmetic of the network", choices=("fp32", "bf16", "fp16"))
    NUMERICS: str = option("fast", "exact = deterministic kernels only", choices=("fast", "exact"))
    COMPILE: bool = option(False, "Compile the network with torch.compile")
    CLIP_NORM: float | None = option(
        1.0, "Largest global norm of the gradient; null = no clipping", above=0, high=1e9
    )
    WEIGHT_DECAY: float = option(0.0, "Weight decay of AdamW", low=0, high=10)
    EMA_DECAYS: tuple[float, ...] = option(
        (0.999,),
        "Decays of the averaged weights; the first is sampled from",
        low=0,
        below=1,
        min_items=1,
        is_unique=True,
    )
    EMA_POWER: tuple[float, ...] = option(
        (),
        "Lengths of averages with a power-function profile, as shares of the training, such as "
        "[0.05, 0.1]; they are kept at every SAVE_PERIOD, and any length can be made of them later",
        above=0,
        below=0.28,
        is_unique=True,
    )
    CHECKPOINTS_KEEP: int = option(3, "Newest checkpoints kept", low=1, is_machine=True)
    PROFILE: int = option(0, "Optimizer steps to profile", low=0, high=10_000, is_machine=True)
    INLINE_GEN: InlineGen = InlineGen()
    HYPER_PARAMETERS: HyperParameters = HyperParameters()
    NETWORK: Network = Network()

    def __post_init__(self) -> None:
        super().__post_init__()
        # [28, 28] and 28 are one run.
        if isinstance(self.INPUT_IMAGE_SIZE, tuple) and len(set(self.INPUT_IMAGE_SIZE)) == 1:
            object.__setattr__(self, "INPUT_IMAGE_SIZE", self.INPUT_IMAGE_SIZE[0])


@dataclass(frozen=True, kw_only=True)
class ImageGeneration(TaskOptions):
    """Images drawn from a trained network."""

    MODEL_PATH: str = option("", "The run or checkpoint to draw from")
    NUM_GEN_IMAGES: int = option(20, "Images to draw", low=1, high=10**9)
    EXPORT_INTERM: bool = option(False, "Export the states between noise and image too")
    EXPORT_EVERY: int | None = option(
        None, "Steps between exported states; null = ten states, evenly spaced", low=1
    )
    EXPORT_FORMAT: str = option(
        "strip", "Exported states as one picture or as a film", choices=("strip", "gif")
    )
    GEN_SAVE_DIR: str | None = option(
        None, "Where images go; null = inside the run", pattern=_SOME_TEXT
    )
    RANDOM_SEED: int | None = option(None, "Seed of the draws; null = 0", low=0, high=_LARGEST_SEED)
    NEW_IMAGE_SIZE: int | None = option(
        None, "Side of the images drawn, pixels; null = INPUT_IMAGE_SIZE", low=1, high=8192
    )


@dataclass(frozen=True, kw_only=True)
class Cluster(Section):
    """What a run may use; null = what is there."""

    NUM_WORKERS: int | None = option(
        None, "Training processes; null = one a GPU, else one", low=1, high=65_536, is_machine=True
    )
    CPUS_PER_WORKER: int | None = option(
        None, "Cores of a worker", low=1, high=4096, is_machine=True
    )
    GPUS_PER_WORKER: float | None = option(
        None, "GPUs of a worker, fractions allowed", low=0, high=64, is_machine=True
    )


@dataclass(frozen=True, kw_only=True)
class Wandb(Section):
    """Weights & Biases."""

    MODE: str = option(
        "offline",
        "Where metrics are mirrored",
        choices=("offline", "online", "disabled"),
        is_machine=True,
    )
    PROJECT: str = option("ddpm", "Project", pattern=SAFE_NAME, is_machine=True)
    ENTITY: str | None = option(None, "User or team", pattern=SAFE_NAME, is_machine=True)
    TAGS: tuple[str, ...] = option(
        (), "Tags of the run", pattern=SAFE_NAME, is_unique=True, is_machine=True
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole configuration."""

    DATASET: Dataset
    TRAINING: Training = Training()
    IMAGE_GENERATION: ImageGeneration = ImageGeneration()
    EVALUATION: Evaluation = Evaluation()
    CLUSTER: Cluster = Cluster()
    WANDB: Wandb = Wandb()
