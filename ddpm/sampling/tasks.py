"""The tasks of IMAGE_GENERATION, as what each adds to the reverse process.

    random_uncond    nothing: no class
    class_cond       classes: CLASS_LABEL, several in turn, all in turn when null
    channel_inpaint  channel FREEZE_CHANNEL of the base images is known, the others are drawn
    inpaint          the pixels where the mask is true are known, the others are drawn
    sdedit           the walk begins at time STRENGTH, in a noised base image    Meng et al. 2022
    interpolate      all noise leads from that of one image number to that of another

Image i takes base image and mask i, in turn where there are fewer. What is known is put into every
state x_s as alpha_s known + sigma_s noise, so that the network sees it at the level it expects, and
clean at s = 0. RESAMPLES walks each step again, so that known and drawn come to agree (RePaint,
Lugmayr et al. 2022).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm.diffusion import Stream
from ddpm.sampling.request import INPAINTING, SampleRequest
from ddpm.sampling.samplers import Constrain, Draws, Start, keyed
from ddpm.sampling.spacing import Level


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of the reverse process besides images: its options of ddpm/sampling/samplers.py.

    x0: ids -> the images that the walk begins from, (N, C, H, W); begin: at this time.
    """

    constrain: Constrain | None = None
    x0: Callable[[Tensor], Tensor] | None = None
    begin: float = 1.0
    draws: Draws | None = None

    def start(self, ids: Tensor) -> Start:
        """Where the walk of these images begins."""
        return Start(time=self.begin, x0=None if self.x0 is None else self.x0(ids))


PLAIN = Task()


def task_of(request: SampleRequest) -> Task:
    """The task of a request."""
    options, seed = request.options, request.seed
    if options.GEN_TASK in INPAINTING:
        clean = _model_space(request)
        known = torch.tensor(_known_pixels(request))
        return Task(constrain=keep_known(clean, known, keyed(seed), options.KNOWN_NOISE))
    if options.GEN_TASK == "sdedit":
        clean = _model_space(request)
        return Task(x0=lambda ids: clean.to(ids.device)[ids % len(clean)], begin=options.STRENGTH)
    return PLAIN


def labels_of(request: SampleRequest, ids: Tensor) -> Tensor | None:
    """The class of each image, int64 like ids; None where all are drawn without one.

    It depends on the image's number alone.
    """
    options, num_classes = request.options, request.config.TRAINING.NETWORK.NUM_CLASSES
    wanted, task = options.CLASS_LABEL, options.GEN_TASK
    if num_classes is None or task == "random_uncond" or (wanted is None and task != "class_cond"):
        return None
    classes = range(num_classes) if wanted is None else np.atleast_1d(wanted)
    turn = torch.as_tensor(list(classes), dtype=torch.int64)
    return turn[ids.cpu() % len(turn)].to(ids.device)


def recipe(request: SampleRequest) -> dict[str, object]:
    """All of a task that its images depend on."""
    options = request.options
    facts: dict[str, object] = {"task": options.GEN_TASK, "base_sha256": request.base_sha256}
    if options.GEN_TASK in INPAINTING:
        facts["known_noise"] = options.KNOWN_NOISE
    if options.GEN_TASK == "channel_inpaint":
        facts["freeze_channel"] = options.FREEZE_CHANNEL
    if options.GEN_TASK == "sdedit":
        facts["strength"] = options.STRENGTH
    return facts


def keep_known(clean: Tensor, known: Tensor, draws: Draws, noise: str) -> Constrain:
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
        source = (Stream.X_T, 0) if noise == "fixed" else (Stream.KNOWN, level.key)
        drawn = draws(source[0], ids, tuple(x_s.shape[1:]), source[1])
        alpha, sigma = float(level.alpha), float(level.sigma)
        noised = (alpha * image.double() + sigma * drawn.double()).to(x_s.dtype)
        return torch.where(here, noised, x_s)

    return constrain


def leading(draws: Draws, first: int, last: int, count: int) -> Draws:
    """Noise that leads over `count` images from that of image `first` to that of image `last`.

    sin((1 - f) angle) / sin(angle) a + sin(f angle) / sin(angle) b,   f = id / (count - 1)

    on the great circle through both (Shoemake 1985), where normal noise keeps its length. At the
    ends it is theirs to the bit, at every step of the walk, so the images are, too.
    """

    def drawn(stream: Stream, ids: Tensor, shape: tuple[int, ...], key: int) -> Tensor:
        ends = draws(stream, ids.new_tensor([first, last]), shape, key)
        a, b = ends.double()
        cosine = (a * b).sum() / (a.norm() * b.norm())
        angle = torch.arccos(cosine.clamp(-1.0, 1.0))
        part = ids.double() / max(1, count - 1)
        weights = torch.sin(torch.stack([1 - part, part]) * angle) / torch.sin(angle)  # (2, N)
        return torch.einsum("en,echw->nchw", weights, ends.double()).to(ends.dtype)

    return drawn


def _model_space(request: SampleRequest) -> Tensor:
    """The base images as the network sees images: float32 (M, C, H, W) in [-1, 1]."""
    assert request.base is not None  # read_request() refuses the task without
    return torch.tensor(request.base).permute(0, 3, 1, 2) * 2 - 1


def _known_pixels(request: SampleRequest) -> np.ndarray:
    """bool (K, C or 1, H, W)."""
    if request.mask is not None:
        return request.mask[:, None]
    known = np.zeros((1, request.image_shape[0], 1, 1), dtype=bool)
    known[:, request.options.FREEZE_CHANNEL] = True
    return known
