"""What IMAGE_GENERATION asks for, from a trained network to files; the tasks are in tasks.py."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import config as configuration
from ddpm import durable, tasks
from ddpm.distributed import ALONE, Group, device_of, whole_batches
from ddpm.film import SUFFIX, Film
from ddpm.guidance import Network
from ddpm.imagebar import ImageBar
from ddpm.loaded import LoadedModel, load_network
from ddpm.pictures import grid, npz, png
from ddpm.request import Request
from ddpm.rundir import RunDirectory
from ddpm.sampling import SampleState
from ddpm.slots import OnState, Sampler, draw, draw_batch, num_calls
from ddpm.weights import guide_weights

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


def generate(request: Request, *, progress: bool = True, group: Group = ALONE) -> Generated:
    """The images of a request, drawn with as many threads as the run was trained with.

    group: workers that all call this; each draws its share in whole batches, rank 0 saves.
    """
    torch.set_num_threads(RunDirectory(request.run).threads)
    return ImageGenerator(request).run(progress=progress, group=group)


class ImageGenerator:
    """Draws what a request asks for, in this process, and saves it.

        ImageGenerator(read_request(run, ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])).run()

    In the request's folder: {stem}.npz (images uint8 (N, H, W, C), and labels where there are
    classes), {stem}.png, {stem}_steps.png or .gif with EXPORT_INTERM, and last {stem}.json, the
    recipe.
    Where the name is taken by images of another recipe, eight digits of its SHA-256 are added.
    """

    def __init__(self, request: Request, *, device: torch.device | None = None) -> None:
        self.request = request
        self.model = load_network(request.checkpoint or request.run, request.ema, device=device)
        self.guide = _guide(request, self.model, device)
        self.sampler = sampler_of(request, self.model, self.guide)
        self.task = tasks.task_of(request)

    def run(self, *, progress: bool = True, group: Group = ALONE) -> Generated:
        """Draw and save; what the same recipe has drawn before is left as it is."""
        recipe = self.recipe()
        generated = place(self.request, recipe)
        if group.any(group.is_main and generated.was_there):
            return generated
        every = self.request.options.EXPORT_EVERY
        film = Film(self._calls, every) if generated.film else None
        if group.size == 1:
            self._save(generated, recipe, self.draw(film, progress=progress), film)
        else:
            images = self._draw_share(group)
            if group.is_main:
                self._save(generated, recipe, images, film)
            group.wait()
        return generated

    def _save(
        self,
        generated: Generated,
        recipe: Mapping[str, object],
        images: NDArray[np.uint8],
        film: Film | None,
    ) -> None:
        labels = self.labels()
        arrays = {"images": images} | ({} if labels is None else {"labels": labels.numpy()})
        durable.make_folder(self.request.folder)
        durable.write_bytes(generated.images, npz(**arrays))
        durable.write_bytes(generated.picture, png(grid(images[:MAX_PICTURED])))
        if film and generated.film:
            form = self.request.options.EXPORT_FORMAT
            durable.write_bytes(generated.film, film.file(len(images), form))
        durable.write_json(generated.recipe, recipe)

    def _draw_share(self, group: Group) -> NDArray[np.uint8]:
        """As draw(), by all workers: the images are on rank 0, with the bits that one worker gives
        them; none on the others. Films are of one worker alone.
        """
        count, size = self.request.options.NUM_GEN_IMAGES, self.request.batch_size
        channels, height, width = self.request.image_shape
        own = whole_batches(count, size, group)
        nothing = np.empty((0, height, width, channels), np.uint8)
        batches = [self.batch(first, size) for first in range(own.start, own.stop, size)]
        drawn = torch.from_numpy(np.concatenate([nothing, *batches]))
        kept = [part.numpy() for part in group.passing(drawn) if group.is_main]
        return np.concatenate([nothing, *kept])[:count]

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
                guide=self._guide_network,
                task=self.task,
                on_state=_watch(film, bar, count, self._calls),
                batch_size=self.request.batch_size,
            )

    def batch(self, first: int, size: int, *, on_state: OnState | None = None) -> NDArray[np.uint8]:
        """Images first .. first + size - 1 in one network batch, uint8 (size, H, W, C).

        They have the bits of draw() where `size` is the request's batch size and divides `first`.
        """
        ids = torch.arange(first, first + size, device=device_of(self.model.network))
        return draw_batch(
            self.model.network,
            self.model.schedule,
            ids,
            self.request.image_shape,
            self.sampler,
            labels=tasks.labels_of(self.request, ids),
            guide=self._guide_network,
            task=self.task,
            on_state=on_state,
        )

    def labels(self) -> Tensor | None:
        """The class of each image, int64 (N,); None where all are drawn without one."""
        return tasks.labels_of(self.request, torch.arange(self.request.options.NUM_GEN_IMAGES))

    def recipe(self) -> dict[str, object]:
        """All that the images depend on."""
        options, request = self.request.options, self.request
        return {
            "format": 1,
            "checkpoint": self.model.folder.name,
            "step": self.model.step,
            "weights": self.model.name,
            "weights_sha256": self.model.sha256,
            "num_images": options.NUM_GEN_IMAGES,
            "image_shape": list(request.image_shape),
            "sampler": asdict(self.sampler),
            "labels": None if self.labels() is None else options.CLASS_LABEL,
            "batch_size": request.batch_size,
            "film": [options.EXPORT_FORMAT, options.EXPORT_EVERY]
            if options.EXPORT_INTERM
            else None,
            **tasks.recipe(request),
        }

    @property
    def _calls(self) -> int:
        return num_calls(self.sampler, self.model.schedule, begin=self.task.begin)

    @property
    def _guide_network(self) -> Network | None:
        return None if self.guide is None else self.guide.network


def sampler_of(request: Request, model: LoadedModel, guide: LoadedModel | None) -> Sampler:
    """The options of a request as a sampler; what an option does not reach is left at its rest."""
    options = request.options
    return Sampler(
        pred_type=model.pred_type,
        steps=configuration.sampling_steps(options, model.schedule.num_timesteps),
        name=options.SAMPLER,
        ddim_eta=options.DDIM_ETA if options.SAMPLER == "ddim" else 0.0,
        spacing=options.SPACING,
        guidance=options.GUIDANCE,
        guidance_interval=options.GUIDANCE_INTERVAL,
        guidance_rescale=options.GUIDANCE_RESCALE,
        guide_sha256=None if guide is None else guide.sha256,
        clip_denoise=options.CLIP_DENOISE,
        dynamic_threshold=options.DYNAMIC_THRESHOLD,
        recompute_noise=options.RECOMPUTE_NOISE,
        resamples=options.RESAMPLES,
        x0_variance=request.x0_variance,
        seed=request.seed,
    )


def _guide(request: Request, model: LoadedModel, device: torch.device | None) -> LoadedModel | None:
    if request.options.GUIDE is None:
        return None
    source, ema = guide_weights(request.options.GUIDE, request.ema)
    return load_network(source or model.folder, ema, device=device)


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
    options = request.options
    film = request.folder / f"{stem}_steps{SUFFIX[options.EXPORT_FORMAT]}"
    return Generated(
        images=request.folder / f"{stem}.npz",
        picture=request.folder / f"{stem}.png",
        film=film if options.EXPORT_INTERM else None,
        recipe=path,
        num_images=options.NUM_GEN_IMAGES,
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
