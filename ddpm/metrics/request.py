"""Request of an evaluation: what is measured and how images are drawn for it, everything checked
that can be checked before torch is loaded.

Every run is drawn from in the same way, so that what is compared is comparable: images 0 .. N - 1
of seed 0, the classes in turn, DDIM of at most 50 steps, eta 0, x0 clipped, batches of 64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddpm.errors import InputError
from ddpm.runs import CONFIG_FILE, checkpoint, load_run
from ddpm.sampling import SampleRequest, foreign_overrides, locate_run, read_request

FEATURES = ("classifier", "pixels", "inception", "clip")
OF_A_FILE = FEATURES[2:]  # whose weights are a file of the user's
DRAWN = 2000
DRAW_BATCH = 64
# Whatever the run's own file says of its pictures.
_PROTOCOL = {
    "DDIM_ETA": "0",
    "CLIP_DENOISE": "true",
    "SAMPLER": "ddim",
    "REVERSE_STRIDE": "null",
    "NUM_STEPS": "null",
    "SPACING": "trailing",
    "GUIDANCE": "1",
    "GUIDE": "null",
    "GUIDANCE_INTERVAL": "null",
    "GUIDANCE_RESCALE": "0",
    "RANDOM_SEED": "0",
    "PIXELS": "uint8",
    "CLASS_LABEL": "null",
    "FREEZE_CHANNEL": "null",
    "EXTERNAL_NPZ_INPUT": "null",
    "NEW_IMAGE_SIZE": "null",
    "EXPORT_INTERM": "false",
    "GEN_SAVE_DIR": "null",
}


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The command line. Paths are as they were typed, in the folder `where`.

    workers: None: as many as there are GPUs, or one.
    """

    source: Path
    overrides: Sequence[str]
    against: str | None
    num: int | None
    features: str | None
    split: str
    weights: Path | None
    ema: float | None
    cache: Path | None
    workers: int | None
    where: Path
    command: tuple[str, ...]

    def request(self) -> SampleRequest | None:
        """The images to draw; None where they are read.  InputError with all that is wrong."""
        problems = []
        if self.num is not None and self.num < 1:
            problems.append(f"--num {self.num}: give 1 at least")
        if self.weights is not None and self.features not in OF_A_FILE:
            problems.append(f"--weights is for --features {' or '.join(OF_A_FILE)}")
        if self.workers is not None and self.workers < 1:
            problems.append(f"--workers {self.workers}: give 1 at least")
        if is_run_or_checkpoint(self.source):
            if problems:
                raise InputError(problems)
            return evaluation_request(self.source, self.num, self.overrides, self.ema)
        if not self.source.exists():
            problems.append(f"{self.source} does not exist")
        if self.overrides or self.ema is not None:
            problems.append(f"{self.source} is no run: its images are there, nothing chooses them")
        if self.against is None:
            problems.append(f"{self.source} is no run: name the real images with --against")
        if foreign := foreign_overrides(self.overrides):
            problems.append(f"{foreign[0]} is no IMAGE_GENERATION key")
        if problems:
            raise InputError(problems)
        return None


def is_run_or_checkpoint(source: Path) -> bool:
    """True of a run directory and of a checkpoint, which images are drawn from."""
    if not source.is_dir():
        return False
    return (source / CONFIG_FILE).is_file() or source.resolve().parent.name == "checkpoints"


def evaluation_request(
    source: Path, num: int | None, overrides: Sequence[str], ema: float | None
) -> SampleRequest:
    """The images drawn from a run, everything checked. `overrides` go over the usual protocol."""
    run, _ = locate_run(source)
    classes = load_run(run).TRAINING.NETWORK.NUM_CLASSES
    task = "random_uncond" if classes is None else "class_cond"
    usual = {"NUM_GEN_IMAGES": str(num or DRAWN), "GEN_TASK": task, **_PROTOCOL}
    changed = {text.partition("=")[0].upper() for text in overrides}
    if "IMAGE_GENERATION.PIXELS" in changed:
        raise InputError("IMAGE_GENERATION.PIXELS: images are measured as bytes; leave it out")
    kept = [
        f"IMAGE_GENERATION.{key}={value}"
        for key, value in usual.items()
        if f"IMAGE_GENERATION.{key}" not in changed
    ]
    return read_request(source, [*kept, *overrides], ema=ema, batch_size=DRAW_BATCH)


def ema_curve_run(run: Path, num: int) -> Path:
    """The run directory whose averages `num` lengths are reconstructed of.

    InputError where it has no snapshots, checkpoint or validation images.
    """
    folder, own = locate_run(run)
    config, steps = load_run(folder), checkpoint.steps(folder / "checkpoints")
    problems = [f"{run} is a checkpoint; name its run, {folder}"] if own else []
    if not config.TRAINING.EMA_POWER:
        problems.append(
            f"{run} was trained without TRAINING.EMA_POWER, so it has no snapshots; train it with "
            "TRAINING.EMA_POWER=[0.05,0.1]"
        )
    if not steps:
        problems.append(f"{run} has no checkpoint yet; train it first")
    if config.DATASET.VALIDATION_FRACTION == 0:
        problems.append(f"{run} has no validation images; DATASET.VALIDATION_FRACTION is 0")
    if num < 1:
        problems.append(f"--num is {num}; give at least 1")
    if problems:
        raise InputError(problems)
    return folder
