"""Tasks of IMAGE_GENERATION, as what each adds to the reverse process.

    random_uncond    nothing: no class
    class_cond       classes: CLASS_LABEL, several in turn, all in turn when null
    channel_inpaint  channel FREEZE_CHANNEL of the base images is known, the others are drawn
    inpaint          the pixels where the mask is true are known, the others are drawn
    sdedit           the walk begins at time STRENGTH, in a noised base image    Meng et al. 2022

Image i takes base image and mask i, in turn where there are fewer. What is known is put into every
state x_s as alpha_s known + sigma_s noise, so that the network sees it at the level it expects, and
clean at s = 0. RESAMPLES walks each step again (8 times unless given), so that known and drawn
come to agree (RePaint, Lugmayr et al. 2022).
"""

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Stream, normal
from ddpm.sampling.request import INPAINTING, SampleRequest
from ddpm.sampling.samplers import Constrain, WalkStart
from ddpm.sampling.spacing import Level


def labels_of(request: SampleRequest, ids: Tensor) -> Tensor | None:
    """Class of each image, int64 like ids; None where all are drawn without one.

    It depends on the image's number alone.
    """
    options, num_classes = request.options, request.config.TRAINING.NETWORK.NUM_CLASSES
    wanted, task = options.CLASS_LABEL, options.GEN_TASK
    if num_classes is None or task == "random_uncond" or (wanted is None and task != "class_cond"):
        return None
    classes = range(num_classes) if wanted is None else np.atleast_1d(wanted)
    turn = torch.as_tensor(list(classes), dtype=torch.int64)
    return turn[ids.cpu() % len(turn)].to(ids.device)


def begin_of(request: SampleRequest) -> float:
    """Time at which the walks of a request begin."""
    return request.options.STRENGTH if request.options.GEN_TASK == "sdedit" else 1.0


def start_of(request: SampleRequest, ids: Tensor) -> WalkStart:
    """First state of the walks of these images."""
    if request.options.GEN_TASK != "sdedit":
        return WalkStart()
    base = _model_space(request)
    return WalkStart(time=request.options.STRENGTH, x0=base.to(ids.device)[ids % len(base)])


def constraint_of(request: SampleRequest) -> Constrain | None:
    """Constraint that keeps the known part of the images; None where nothing is known."""
    options = request.options
    if options.GEN_TASK not in INPAINTING:
        return None
    if request.mask is not None:
        known = torch.tensor(request.mask[:, None])
    else:
        known = torch.zeros((1, request.image_shape[0], 1, 1), dtype=torch.bool)
        known[:, options.FREEZE_CHANNEL] = True
    return keep_known(_model_space(request), known, request.seed, options.KNOWN_NOISE)


def keep_known(clean: Tensor, known: Tensor, seed: int, noise: str) -> Constrain:
    """Puts what is known into every state, at the state's level.

    x_s = known ? alpha_s clean + sigma_s noise : x_s

    clean: (M, C, H, W) in [-1, 1].  known: bool (K, C or 1, H, W).
    noise: "fixed", that of the image's start at every level; "fresh", another at every level;
    "none": DDPM v3 puts the clean image into every state, which no network was trained on.
    """

    def constrain(x_s: Tensor, level: Level, ids: Tensor) -> Tensor:
        here = known.to(x_s.device)[ids % len(known)]
        image = clean.to(x_s.device)[ids % len(clean)]
        if noise == "none" or level.is_clean:
            return torch.where(here, image, x_s)
        stream, key = (Stream.X_T, 0) if noise == "fixed" else (Stream.KNOWN, level.key)
        drawn = normal(seed, stream, ids, x_s.shape[1:], step=key)
        alpha, sigma = float(level.alpha), float(level.sigma)
        noised = (alpha * image.double() + sigma * drawn.double()).to(x_s.dtype)
        return torch.where(here, noised, x_s)

    return constrain


def task_facts(request: SampleRequest) -> dict[str, object]:
    """All of a task that its images depend on, for their recipe."""
    options = request.options
    facts: dict[str, object] = {"task": options.GEN_TASK, "base_sha256": request.base_sha256}
    if options.GEN_TASK in INPAINTING:
        facts["known_noise"] = options.KNOWN_NOISE
    if options.GEN_TASK == "channel_inpaint":
        facts["freeze_channel"] = options.FREEZE_CHANNEL
    if options.GEN_TASK == "sdedit":
        facts["strength"] = options.STRENGTH
    return facts


def _model_space(request: SampleRequest) -> Tensor:
    """The base images as the network sees images: float32 (M, C, H, W) in [-1, 1]."""
    assert request.base is not None  # read_request() refuses the task without
    return torch.tensor(request.base).permute(0, 3, 1, 2) * 2 - 1
