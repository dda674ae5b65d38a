"""The three tasks of IMAGE_GENERATION, from a trained network to files.

random_uncond: no class.  class_cond: CLASS_LABEL, several in turn, all in turn when null.
channel_inpaint: channel FREEZE_CHANNEL of the images in EXTERNAL_NPZ_INPUT is known, the others are
drawn.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import base_images, durable, noise
from ddpm import config as configuration
from ddpm.film import Film
from ddpm.imagebar import ImageBar
from ddpm.loaded import load_network
from ddpm.noise import Stream
from ddpm.pictures import grid, npz, png
from ddpm.request import Request
from ddpm.rundir import RunDirectory
from ddpm.sampling import Constrain, SampleState
from ddpm.schedule import NoiseSchedule
from ddpm.slots import OnState, Sampler, device_of, draw, draw_batch, num_calls

# A picture of more is too large to look at; the NPZ file has them all.
MAX_PICTURED = 400


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Where the images are. was_there: they had been drawn before by the same recipe."""

    images: Path
    picture: Path
    film: Path | None
    recipe: Path
    num_images: int
    was_there: bool

    def describe(self) -> str:
        """One line: where the images are."""
        opening = "already drawn" if self.was_there else "done"
        film = f", steps in {self.film.name}" if self.film else ""
        picture = f"picture in {self.picture.name}{film}"
        return f"{opening}: {self.num_images} images in {self.images}, {picture}"


def generate(request: Request, *, progress: bool = True) -> Generated:
    """The images of a request, drawn with as many threads as the run was trained with."""
    torch.set_num_threads(RunDirectory(request.run).threads)
    return ImageGenerator(request).run(progress=progress)


class ImageGenerator:
    """Draws what a request asks for, in this process, and saves it.

        ImageGenerator(read_request(run, ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])).run()

    In the request's folder: {stem}.npz (images uint8 (N, H, W, C), and labels where there are
    classes), {stem}.png, {stem}_steps.png with EXPORT_INTERM, and last {stem}.json, the recipe.
    Where the name is taken by images of another recipe, eight digits of its SHA-256 are added.
    """

    def __init__(self, request: Request, *, device: torch.device | None = None) -> None:
        self.request = request
        self.model = load_network(request.checkpoint or request.run, request.ema, device=device)
        timesteps = self.model.schedule.num_timesteps
        self.sampler = Sampler(
            pred_type=self.model.pred_type,
            steps=configuration.sampling_steps(request.options, timesteps),
            ddim_eta=request.options.DDIM_ETA,
            guidance=request.options.GUIDANCE,
            clip_denoise=request.options.CLIP_DENOISE,
            seed=request.seed,
        )

    def run(self, *, progress: bool = True) -> Generated:
        """Draw and save; what the same recipe has drawn before is left as it is."""
        recipe = self.recipe()
        generated = place(self.request, recipe)
        if generated.was_there:
            return generated
        film = Film(self._calls) if generated.film else None
        images, labels = self.draw(film, progress=progress), self.labels()
        arrays = {"images": images} | ({} if labels is None else {"labels": labels.numpy()})
        durable.make_folder(self.request.folder)
        durable.write_bytes(generated.images, npz(**arrays))
        durable.write_bytes(generated.picture, png(grid(images[:MAX_PICTURED])))
        if film and generated.film:
            durable.write_bytes(generated.film, png(film.picture(len(images))))
        durable.write_json(generated.recipe, recipe)
        return generated

    def draw(self, film: Film | None = None, *, progress: bool = False) -> NDArray[np.uint8]:
        """The images, uint8 (N, H, W, C)."""
        count = self.request.options.NUM_GEN_IMAGES
        with ImageBar("drawing", count, is_shown=progress) as bar:
            return draw(
                self.model.network,
                self.model.schedule,
                count,
                self.request.image_shape,
                self.sampler,
                labels=self.labels(),
                constrain=self._constrain(),
                on_state=_watch(film, bar, count, self._calls),
                batch_size=self.request.batch_size,
            )

    def batch(self, first: int, size: int, *, on_state: OnState | None = None) -> NDArray[np.uint8]:
        """Images first .. first + size - 1 in one network batch, uint8 (size, H, W, C).

        They have the bits of draw() where `size` is the request's batch size and divides `first`.
        """
        ids = torch.arange(first, first + size, device=device_of(self.model.network))
        labels = self.labels_of(ids.cpu())
        return draw_batch(
            self.model.network,
            self.model.schedule,
            ids,
            self.request.image_shape,
            self.sampler,
            labels=None if labels is None else labels.to(ids.device),
            constrain=self._constrain(),
            on_state=on_state,
        )

    def labels(self) -> Tensor | None:
        """The class of each image, int64 (N,); None where all are drawn without one."""
        return self.labels_of(torch.arange(self.request.options.NUM_GEN_IMAGES))

    def labels_of(self, ids: Tensor) -> Tensor | None:
        """The class of each of these images; it depends on the image's number alone."""
        options, num_classes = self.request.options, self.model.network.num_classes
        if num_classes is None or options.GEN_TASK == "random_uncond":
            return None
        wanted = options.CLASS_LABEL
        if wanted is None and options.GEN_TASK == "channel_inpaint":
            return None
        classes = range(num_classes) if wanted is None else np.atleast_1d(wanted)
        turn = torch.as_tensor(list(classes), dtype=torch.int64)
        return turn[ids % len(turn)]

    def recipe(self) -> dict[str, object]:
        """All that the images depend on."""
        options, request = self.request.options, self.request
        return {
            "format": 1,
            "checkpoint": self.model.folder.name,
            "step": self.model.step,
            "weights": self.model.name,
            "weights_sha256": self.model.sha256,
            "task": options.GEN_TASK,
            "num_images": options.NUM_GEN_IMAGES,
            "image_shape": list(request.image_shape),
            "sampler": asdict(self.sampler),
            "labels": None if self.labels() is None else options.CLASS_LABEL,
            "freeze_channel": options.FREEZE_CHANNEL,
            "base_sha256": None if request.base is None else base_images.sha256(request.base),
            "batch_size": request.batch_size,
            "film": options.EXPORT_INTERM,
        }

    @property
    def _calls(self) -> int:
        return num_calls(self.sampler, self.model.schedule.num_timesteps)

    def _constrain(self) -> Constrain | None:
        channel, base = self.request.options.FREEZE_CHANNEL, self.request.base
        if base is None or channel is None:
            return None
        known = torch.from_numpy(base[..., channel].copy()) * 2 - 1
        return known_channel(self.model.schedule, known, channel, self.sampler.seed)


def known_channel(schedule: NoiseSchedule, known: Tensor, channel: int, seed: int) -> Constrain:
    """Replaces one channel of every state by its known clean image, noised to the state's level.

    x_s[channel] = alpha_s known + sigma_s noise

    with the noise the image starts from, the same at every level; at s = 0 it is the clean one.
    known: (M, H, W) in [-1, 1]; image i takes known[i % M].
    """

    def constrain(x_s: Tensor, s: int, ids: Tensor) -> Tensor:
        alpha, sigma = (float(x) for x in schedule.alpha_sigma_at(torch.tensor(s)))
        start = noise.normal(seed, Stream.X_T, ids, tuple(x_s.shape[1:]))[:, channel]
        clean = known.to(x_s.device)[ids % len(known)]
        x_s = x_s.clone()
        x_s[:, channel] = (alpha * clean.double() + sigma * start.double()).to(x_s.dtype)
        return x_s

    return constrain


def place(request: Request, recipe: Mapping[str, object]) -> Generated:
    """The files of a recipe: named as v3 names them, with its digits where that name is taken."""
    text = json.dumps(recipe, sort_keys=True)
    digits = hashlib.sha256(text.encode()).hexdigest()[:8]
    for stem in (request.stem, f"{request.stem}_{digits}"):
        path = request.folder / f"{stem}.json"
        is_same = (
            path.is_file() and json.dumps(json.loads(path.read_text()), sort_keys=True) == text
        )
        if is_same or not path.exists():
            break
    has_film = request.options.EXPORT_INTERM
    return Generated(
        images=request.folder / f"{stem}.npz",
        picture=request.folder / f"{stem}.png",
        film=request.folder / f"{stem}_steps.png" if has_film else None,
        recipe=path,
        num_images=request.options.NUM_GEN_IMAGES,
        was_there=is_same and path.with_suffix(".npz").is_file(),
    )


def _watch(film: Film | None, bar: ImageBar, num_images: int, calls: int) -> OnState:
    """Shows states to the film, and moves the bar by the share of its images a batch has done."""
    shown = states = 0

    def on_state(ids: Tensor, state: SampleState) -> None:
        nonlocal shown, states
        states += 1
        if film is not None:
            film.add(ids, state)
        done = min(num_images, states * len(ids) // calls)
        bar.advance(done - shown)
        shown = done

    return on_state
