"""Images of a request: a run's weights, a sampler, a task; the files they are kept in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm import config as configuration
from ddpm.data import images
from ddpm.distributed import ALONE, Group, device_of, whole_batches
from ddpm.errors import InputError
from ddpm.runs import ImageBar, RunDirectory, digest, grid, npz, png, storage
from ddpm.sampling import tasks
from ddpm.sampling.batches import OnState, draw_batch, num_calls
from ddpm.sampling.film import Film
from ddpm.sampling.loading import LoadedModel, load_network
from ddpm.sampling.request import (
    BATCH_SIZE,
    MAX_PICTURED,
    SampleRequest,
    guide_weights,
    in_units,
)
from ddpm.sampling.samplers import (
    SamplerOptions,
    SampleState,
)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """Files of the images. was_there: they had been drawn before by the same recipe."""

    images: Path
    picture: Path
    film: Path | None
    recipe: Path
    num_images: int
    was_there: bool
    units: str

    def describe(self) -> str:
        """One line: where the images are."""
        opening = "already drawn" if self.was_there else "done"
        film = f", steps in {self.film.name}" if self.film else ""
        picture = f"picture in {self.picture.name}{film}"
        return f"{opening}: {self.num_images} images in {self.images}{self.units}, {picture}"


class ImageGenerator:
    """Images of a request, drawn in this process and saved.

        ImageGenerator(read_request(run, ["IMAGE_GENERATION.NUM_GEN_IMAGES=64"])).run()

    In the request's folder: {stem}.npz (images uint8 (N, H, W, C), or float32 with PIXELS float,
    and labels where there are classes), {stem}.png, {stem}_steps.png or .gif with EXPORT_INTERM,
    and last {stem}.json, the recipe.
    Where the name is taken by images of another recipe, eight digits of its SHA-256 are added.
    """

    def __init__(self, request: SampleRequest) -> None:
        self.request = request
        self.model = load_network(request.checkpoint or request.run, request.ema)
        self.guide: LoadedModel | None = None
        if request.options.GUIDE is not None:
            source, ema = guide_weights(request.options.GUIDE, request.ema)
            self.guide = load_network(source or self.model.folder, ema)
            seen = self.model.schedule.time_input
            if self.guide.schedule.time_input != seen:
                raise InputError(
                    f"IMAGE_GENERATION.GUIDE is {request.options.GUIDE!r}, whose network sees "
                    f"{self.guide.schedule.time_input} and the one it guides sees {seen} "
                    "(TRAINING.NETWORK.TIME_INPUT); name a run that sees the same"
                )
            own, other = (one.schedule.sigma_data for one in (self.model, self.guide))
            if self.model.pred_type == "edm" and own != other:
                raise InputError(
                    f"IMAGE_GENERATION.GUIDE is {request.options.GUIDE!r}, an edm network of data "
                    f"with sigma_data {other} and the one it guides of {own}; name a run that was "
                    "trained on the same images"
                )
        self.sampler = sampler_options(request, self.model)
        self._constrain = tasks.constraint_of(request)
        try:
            self.sampler.levels(self.model.schedule, tasks.begin_of(request))
        except ValueError as error:  # of sdedit, below the last step
            begin = request.options.STRENGTH
            raise InputError(f"IMAGE_GENERATION.STRENGTH is {begin:g}: {error}") from None

    def run(self, group: Group = ALONE) -> Generated:
        """Draw, with the threads the run was trained with, and save; what the same recipe has drawn
        before is left as it is.

        group: workers that all call this; each draws its share in whole batches, rank 0 saves.
        """
        torch.set_num_threads(RunDirectory(self.request.run).threads)
        recipe = self.recipe()
        generated = files_of(self.request, recipe)
        if group.any(group.is_main and generated.was_there):
            return generated
        film = Film(self._calls, self.request.options.EXPORT_EVERY) if generated.film else None
        drawn = self.draw(film, group)
        if group.is_main:
            self._save(generated, recipe, drawn, film)
        group.wait()
        return generated

    def _save(
        self,
        generated: Generated,
        recipe: Mapping[str, object],
        drawn: NDArray[Any],
        film: Film | None,
    ) -> None:
        labels = self.labels()
        arrays = {"images": drawn} | ({} if labels is None else {"labels": labels.numpy()})
        storage.make_folder(self.request.folder)
        storage.write_bytes(generated.images, npz(**arrays))
        shown = images.to_bytes(drawn[:MAX_PICTURED], self.request.ranges)
        storage.write_bytes(generated.picture, png(grid(shown)))
        if film and generated.film:
            form = self.request.options.EXPORT_FORMAT
            storage.write_bytes(generated.film, film.file(len(drawn), form))
        storage.write_json(generated.recipe, recipe)

    def draw(self, film: Film | None = None, group: Group = ALONE) -> NDArray[Any]:
        """The images (N, H, W, C); with several workers on rank 0, none on the others.

        Whole batches are shared out, so the bits are those that one worker gives them.
        """
        count, size = self.request.num, self.request.batch_size or BATCH_SIZE
        channels, height, width = self.request.image_shape
        own = whole_batches(count, size, group)
        dtype = np.float32 if self.request.ranges else np.uint8
        nothing = np.empty((0, height, width, channels), dtype)
        with ImageBar("drawing", count, is_shown=group.size == 1) as bar:
            watch = _watch(film, bar, count, self._calls)
            batches = [
                self.batch(first, size, on_state=watch)
                for first in range(own.start, own.stop, size)
            ]
        drawn = np.concatenate([nothing, *batches])
        if group.size > 1:
            parts = [
                part.numpy() for part in group.passing(torch.from_numpy(drawn)) if group.is_main
            ]
            drawn = np.concatenate([nothing, *parts])
        return drawn[:count]

    def batch(self, first: int, size: int, *, on_state: OnState | None = None) -> NDArray[Any]:
        """Images first .. first + size - 1 in one network batch, (size, H, W, C).

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
            guide=None if self.guide is None else self.guide.network,
            constrain=self._constrain,
            start=tasks.start_of(self.request, ids),
            on_state=on_state,
            ranges=self.request.ranges,
        )

    def first_step(self, size: int) -> None:
        """One step of the reverse process with so many images: whether memory is enough."""

        class Enough(Exception):
            pass

        def enough(ids: Tensor, state: SampleState) -> None:
            raise Enough

        try:
            self.batch(0, size, on_state=enough)
        except Enough:
            return

    def labels(self) -> Tensor | None:
        """Class of each image, int64 (N,); None where all are drawn without one."""
        return tasks.labels_of(self.request, torch.arange(self.request.num))

    def recipe(self) -> dict[str, object]:
        """All that the images depend on."""
        options, request = self.request.options, self.request
        film = [options.EXPORT_FORMAT, options.EXPORT_EVERY] if options.EXPORT_INTERM else None
        return {
            "format": 1,
            "checkpoint": self.model.folder.name,
            "step": self.model.step,
            "weights": self.model.name,
            "weights_sha256": self.model.sha256,
            "num_images": options.NUM_GEN_IMAGES,
            "image_shape": list(request.image_shape),
            "sampler": self._sampler_facts(),
            "labels": None if self.labels() is None else options.CLASS_LABEL,
            "batch_size": request.batch_size or BATCH_SIZE,
            "film": film,
            **({"ranges": [list(one) for one in request.ranges]} if request.ranges else {}),
            **tasks.task_facts(request),
        }

    def _sampler_facts(self) -> dict[str, object]:
        """The sampler in a recipe, by the names that recipes have had from the first."""
        sampler, sigma_data = self.sampler, self.model.schedule.sigma_data
        return {
            "pred_type": sampler.pred_type,
            "steps": self._steps,
            "name": sampler.sampler,
            "ddim_eta": sampler.ddim_eta,
            "spacing": sampler.spacing,
            "guidance": sampler.guidance,
            "guidance_interval": sampler.guidance_interval,
            "guidance_rescale": sampler.guidance_rescale,
            "guide_sha256": None if self.guide is None else self.guide.sha256,
            "clip_denoise": sampler.clip_denoise,
            "dynamic_threshold": None,
            "recompute_noise": sampler.recompute_noise,
            "resamples": sampler.resamples,
            "x0_variance": None,
            "seed": sampler.seed,
            **({"sigma_data": sigma_data} if sigma_data is not None else {}),
        }

    @property
    def _steps(self) -> configuration.SamplingSteps:
        """{"num_steps": n} or {"reverse_stride": k}."""
        return configuration.sampling_steps(self.request.options, self.model.schedule.num_timesteps)

    @property
    def _calls(self) -> int:
        begin = tasks.begin_of(self.request)
        return num_calls(self.sampler, self.model.schedule, begin=begin)


def sampler_options(request: SampleRequest, model: LoadedModel) -> SamplerOptions:
    """The sampler of a request; what an option does not reach is left at its rest."""
    options = request.options
    return SamplerOptions(
        pred_type=model.pred_type,
        **configuration.sampling_steps(options, model.schedule.num_timesteps),
        sampler=options.SAMPLER,
        ddim_eta=options.DDIM_ETA if options.SAMPLER == "ddim" else 0.0,
        spacing=options.SPACING,
        guidance=options.GUIDANCE,
        guidance_interval=options.GUIDANCE_INTERVAL,
        guidance_rescale=options.GUIDANCE_RESCALE,
        clip_denoise=options.CLIP_DENOISE,
        recompute_noise=options.RECOMPUTE_NOISE,
        resamples=request.resamples,
        seed=request.seed,
    )


def files_of(request: SampleRequest, recipe: Mapping[str, object]) -> Generated:
    """The files of a recipe: named as v3 names them, with its digits where that name is taken."""
    wanted = digest(recipe)
    for stem in (request.stem, f"{request.stem}_{wanted[:8]}"):
        path = request.folder / f"{stem}.json"
        is_same = path.is_file() and digest(storage.read_facts(path)) == wanted
        if is_same or not path.exists():
            break
    options = request.options
    film = request.folder / f"{stem}_steps{Film.SUFFIX[options.EXPORT_FORMAT]}"
    return Generated(
        images=request.folder / f"{stem}.npz",
        picture=request.folder / f"{stem}.png",
        film=film if options.EXPORT_INTERM else None,
        recipe=path,
        num_images=options.NUM_GEN_IMAGES,
        was_there=is_same and path.with_suffix(".npz").is_file(),
        units=in_units(request.ranges),
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
