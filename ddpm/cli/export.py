"""A trained network as a folder of its own: weights, configuration and a model card.

examples:
  ddpm export RUN OUT --to safetensors
  ddpm export RUN/checkpoints/step-00001000 OUT --to safetensors --ema 0
  ddpm export RUN OUT --to diffusers --label 3
  ddpm export RUN OUT --to torch

OUT: README.md with the data, the schedule, what was measured with its intervals, what the training
took and how images are drawn, and

  safetensors   model.safetensors and config.yaml, for this package
  diffusers     what DDPMPipeline and DDIMPipeline of diffusers load; drawn from by both before it
                is written, where diffusers is installed: the same noise must give the same images
  torch         model.pt2, a program of torch.export: (x_t, t, labels) -> the prediction, for any
                number of images; tried against the network before it is written

It is there whole or not at all.
"""

import argparse
import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ddpm.cli.options import command_line
from ddpm.errors import InputError, as_typed
from ddpm.runs import find_run, id_of
from ddpm.sampling import locate_run, parse_ema

if TYPE_CHECKING:
    from ddpm.sampling import LoadedModel

CONFIG = "config.yaml"
_TOLERANCE = 1e-4  # of images in [-1, 1]
_PROGRAM_TOLERANCE = 1e-5  # of predictions
_SAMPLING = """\
```python
from pathlib import Path

import torch
from safetensors.torch import load_file

from ddpm import NoiseSchedule, UNet, sample
from ddpm.config import image_shape, load, network_arguments, schedule_arguments

config = load(Path("config.yaml"))
network = UNet(**network_arguments(config)).eval()
network.load_state_dict(load_file("model.safetensors"))
with torch.no_grad():
    images = sample(  # (4, C, H, W) in [-1, 1]
        network,
        NoiseSchedule(**schedule_arguments(config){sigma_data}),
        torch.arange(4),
        image_shape(config),
        pred_type=config.TRAINING.PRED_TYPE,
        num_steps={steps},
        labels={labels},
    )
```"""
_PIPELINE = """\
```python
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(".")
images = pipeline(batch_size=4, num_inference_steps={steps}).images
```"""
_LABELLED = """\
```python
import torch
from diffusers import DDIMPipeline

pipeline = DDIMPipeline.from_pretrained(".")  # which passes no labels when it is called
unet, scheduler = pipeline.unet, pipeline.scheduler
images, labels = torch.randn(4, {shape}), {labels}
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
        images = scheduler.step(unet(images, t, labels).sample, t, images).prev_sample
```"""

_PROGRAM = """\
```python
import torch

program = torch.export.load("model.pt2")  # may unpickle: only of files that you trust
network = program.module()
alpha, sigma = (program.state_dict[name] for name in ("alpha", "sigma"))  # at t = 0, ..., {total}
x_t, t = torch.randn(4, {shape}), torch.full((4,), {total})  # any number of images
with torch.no_grad():
    prediction = network(x_t, t{, labels})
```

On a GPU: `torch.export.passes.move_to_device_pass(program, "cuda")`."""


class _Export(NamedTuple):
    """Files by name, the weights first; what reads them, how images are drawn, how it was tried."""

    files: Mapping[str, bytes]
    library: str
    drawing: str
    tried: str = ""


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm export`."""
    result = command_line("export", __doc__)
    result.add_argument("source", type=find_run, help="run or checkpoint")
    result.add_argument("out", type=Path, metavar="OUT", help="folder, made")
    result.add_argument("--to", choices=_FORMS, required=True, help="for what")
    result.add_argument(
        "--ema",
        type=parse_ema,
        metavar="DECAY",
        help="averaged weights; 0 = as trained, unaveraged",
    )
    result.add_argument(
        "--label", metavar="N|none", help="diffusers: the one class to draw; else as it is asked to"
    )
    return result


def main(argv: list[str] | None = None) -> int:
    """Exports; 0."""
    args = parser().parse_args(argv)
    if args.out.exists():
        raise InputError(f"{args.out} is there already; give another OUT")
    if args.label is not None and args.to != "diffusers":
        raise InputError(f"--label is for --to diffusers; --to {args.to} keeps every class")
    locate_run(args.source)  # refused before torch is loaded

    import torch

    from ddpm.runs import storage
    from ddpm.sampling import load_network

    model = load_network(args.source, args.ema, device=torch.device("cpu"))
    made = _FORMS[args.to](model, _label(model, args.label))
    card = "\n".join(_card(model, made)) + "\n"
    storage.make_folder(args.out.absolute().parent)
    with storage.new_folder(args.out.absolute()) as write:
        for name, data in made.files.items():
            write(name, data)
        write("README.md", card.encode())
    print(f"{args.out}: {model.name} of {model.folder}, with a model card, README.md")
    if made.tried:
        print(made.tried)
    return 0


def _label(model: "LoadedModel", asked: str | None) -> int | None:
    """--label as a label of the network; InputError where it has none such."""
    if asked is None:
        return None
    training, classes = model.config.TRAINING, model.network.num_classes
    if classes is None:
        raise InputError("--label: the network has no classes; leave it out")
    if asked == "none" and training.LABEL_DROP > 0:
        return classes
    if not asked.isdecimal() or int(asked) >= classes:
        no = " (none: LABEL_DROP was 0, so it was never trained without a class)"
        raise InputError(
            f"--label is {asked}; give a class from 0 to {classes - 1}"
            + (no if asked == "none" else ", or none")
        )
    return int(asked)


def _safetensors(model: "LoadedModel", _: int | None) -> _Export:
    import safetensors.torch

    from ddpm.config import to_yaml

    tensors = {name: each.contiguous() for name, each in model.network.state_dict().items()}
    sigma_data = model.schedule.sigma_data
    known = "" if sigma_data is None else f", sigma_data={sigma_data!r}"
    return _Export(
        files={
            "model.safetensors": safetensors.torch.save(tensors),
            CONFIG: to_yaml(model.config).encode(),
        },
        library="ddpm",
        drawing=_filled(_SAMPLING.replace("{sigma_data}", known), model),
    )


def _diffusers(model: "LoadedModel", label: int | None) -> _Export:
    import safetensors.torch

    from ddpm.diffusion import scheduler_config, unet2d_config, unet2d_problems, unet2d_weights

    network, schedule = model.network, model.schedule
    if problems := unet2d_problems(network, schedule, model.pred_type):
        raise InputError(["diffusers has no counterpart of this network:", *problems])
    index = {
        "_class_name": "DDPMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    clips = model.config.IMAGE_GENERATION.CLIP_DENOISE
    configs = {
        "model_index.json": index,
        "unet/config.json": unet2d_config(network, schedule, label),
        "scheduler/scheduler_config.json": scheduler_config(schedule, model.pred_type, clips=clips),
    }
    weights = unet2d_weights(network, schedule, label)
    files = {
        "unet/diffusion_pytorch_model.safetensors": safetensors.torch.save(
            weights, metadata={"format": "pt"}
        ),
        **{name: json.dumps(each, indent=2).encode() for name, each in configs.items()},
    }
    passes_labels = label is None and network.num_classes is not None
    return _Export(
        files=files,
        library="diffusers",
        drawing=_filled(_LABELLED if passes_labels else _PIPELINE, model),
        tried=_tried_by_diffusers(model, label, files),
    )


def _tried_by_diffusers(model: "LoadedModel", label: int | None, files: Mapping[str, bytes]) -> str:
    """A line on images drawn by diffusers and by us from the same noise; InputError if unequal."""
    try:
        import diffusers
    except ModuleNotFoundError:
        return (
            "not verified: diffusers is not installed here; after `pip install diffusers` export "
            "again, and its images are compared"
        )
    import torch

    from ddpm.diffusion import Stream, normal
    from ddpm.sampling import sample

    diffusers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (path := Path(folder, name)).parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        for kind in (diffusers.DDPMPipeline, diffusers.DDIMPipeline):
            pipeline = kind.from_pretrained(folder, low_cpu_mem_usage=False)
    unet, scheduler, classes = pipeline.unet, pipeline.scheduler, model.network.num_classes
    total, ids = model.schedule.num_timesteps, torch.arange(2)
    steps = max(n for n in range(1, min(50, total) + 1) if total % n == 0)
    labels = given = None
    if classes is not None:
        labels = ids % classes if label is None else torch.full_like(ids, label)
        given = labels if label is None else None
    ours = sample(
        model.network,
        model.schedule,
        ids,
        model.image_shape,
        pred_type=model.pred_type,
        num_steps=steps,
        labels=labels,
        clip_denoise=model.config.IMAGE_GENERATION.CLIP_DENOISE,
        recompute_noise=False,  # DDIMPipeline does not unless it is told
    )
    theirs = normal(0, Stream.X_T, ids, model.image_shape)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(unet(theirs, t, given).sample, t, theirs).prev_sample
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
    found = (
        f"{len(ids)} images of {steps} steps differ by {apart:.1e} at most from those drawn here"
    )
    if not apart <= _TOLERANCE:
        raise InputError(
            f"diffusers {diffusers.__version__} draws other images from the exported network: "
            f"{found}, where {_TOLERANCE:.0e} is allowed; nothing was written"
        )
    return f"verified with diffusers {diffusers.__version__}: {found}"


def _torch(model: "LoadedModel", _: int | None) -> _Export:
    import torch

    from ddpm.diffusion import Stream, normal
    from ddpm.sampling import TimestepNetwork

    total, classes = model.schedule.num_timesteps, model.network.num_classes
    network = TimestepNetwork(model.network, model.schedule, model.pred_type).eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def inputs(number: int) -> tuple[torch.Tensor, ...]:
        ids = torch.arange(number)
        given = (normal(0, Stream.X_T, ids, model.image_shape), total - ids * (total - 1) // number)
        return given if classes is None else (*given, ids % (classes + 1))

    batch, given = {0: torch.export.Dim("batch", max=2**31 - 1)}, inputs(2)
    with torch.no_grad():
        program = torch.export.export(network, given, dynamic_shapes=(batch,) * len(given))
        torch.export.save(program, buffer := io.BytesIO())
        # It can unpickle, so it is given nothing but the bytes that were made just now.
        again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
        apart = 0.0
        for number in (1, 5):
            expected, found = network(*inputs(number)), again(*inputs(number))
            scale = expected.abs().max().clamp(min=1)
            apart = max(apart, float((found - expected).abs().max() / scale))
    told = f"predictions for 1 and for 5 images differ by {apart:.1e} at most from the network's"
    if not apart <= _PROGRAM_TOLERANCE:
        raise InputError(
            f"torch {torch.__version__} exports another network: {told}, where "
            f"{_PROGRAM_TOLERANCE:.0e} is allowed; nothing was written"
        )
    return _Export(
        files={"model.pt2": buffer.getvalue()},
        library="torch",
        drawing=_filled(_PROGRAM, model),
        tried=f"verified with torch {torch.__version__}: {told}",
    )


def _filled(drawing: str, model: "LoadedModel") -> str:
    """A card's example with the numbers of a model."""
    classes = model.network.num_classes
    labels = "None" if classes is None else f"torch.arange(4) % {classes}"
    numbers = {
        "{, labels}": "" if classes is None else f", {labels}",
        "{total}": str(model.schedule.num_timesteps),
        "{steps}": str(min(50, model.schedule.num_timesteps)),
        "{labels}": labels,
        "{shape}": ", ".join(map(str, model.image_shape)),
    }
    for name, text in numbers.items():
        drawing = drawing.replace(name, text)
    return drawing


_FORMS = {"safetensors": _safetensors, "diffusers": _diffusers, "torch": _torch}


def _card(model: "LoadedModel", made: _Export) -> Iterator[str]:
    """Lines of the model card, in Markdown."""
    from ddpm.config import architecture_tag
    from ddpm.runs import RunDirectory

    config, training = model.config, model.config.TRAINING
    run = RunDirectory(model.folder.parent.parent)
    facts = run.provenance
    channels, height, width = model.image_shape
    classes = training.NETWORK.NUM_CLASSES
    known = facts.get("data_sha256")
    weights, content = next(iter(made.files.items()))
    sha256 = hashlib.sha256(content).hexdigest()
    rows = {
        "data": f"{config.DATASET.NAME}, {height}x{width}x{channels}, {classes or 'no'} classes"
        + (f", index {known}" if known else ""),
        "network": f"{architecture_tag(config)}, "
        f"{sum(each.numel() for each in model.network.parameters()):,} parameters",
        "schedule": f"{training.NETWORK.SCHEDULER}, {training.NETWORK.TIMESTEPS} timesteps",
        "prediction": f"{training.PRED_TYPE}, loss {training.LOSS_FN}",
        "weights": f"{model.name} of step {model.step:,}, {weights} with SHA-256 {sha256}",
        "training took": _cost(run.summary),
        "made by": f"run {run.run_id}, ddpm at commit {(facts.get('git') or {}).get('commit')}",
    }
    sigma_data = model.schedule.sigma_data
    if sigma_data is not None:
        rows["sigma_data"] = f"{sigma_data!r}, the standard deviation of the data's values"
    if "ranges" in facts:
        found = ", ".join(f"{low!r} to {high!r}" for low, high in facts["ranges"])
        rows["units"] = f"-1 to 1 is, by channel, {found} of the data"
    if "imported" in facts:
        rows["imported from"] = f"Keras weights with SHA-256 {facts['imported']['sha256']}"
    if made.tried:
        rows["tried"] = made.tried
    yield from ("---", f"library_name: {made.library}")
    yield from ("pipeline_tag: unconditional-image-generation", "---")
    yield from (f"# {config.DATASET.NAME}, {training.PRED_TYPE}", "", "| | |", "|---|---|")
    yield from (f"| {name} | {text} |" for name, text in rows.items())
    yield from ("", "## Measures", "")
    yield from _measures(run.path, model.sha256)
    yield from ("", "## Use", "", f"In this folder, with `{made.library}`:", "")
    yield made.drawing
    yield from ("", "No licence is given here: that of the data and your own decide.")


def _cost(summary: Mapping[str, Any]) -> str:
    hours = {"GPU-hours": "gpu_seconds", "hours of CPU time": "core_seconds", "hours": "seconds"}
    known = [f"{summary[key] / 3600:.3g} {unit}" for unit, key in hours.items() if summary.get(key)]
    return ", ".join(known) or "not known: the run has not ended"


def _measures(run: Path, weights_sha256: str) -> Iterator[str]:
    """A table of every record of `evaluate` of these weights; a line where there is none."""
    found = []
    for path in sorted(run.glob("evaluation_of_samples*.json")):
        record = json.loads(path.read_text())
        if record["samples"].get("weights_sha256") == weights_sha256:
            found.append(record)
    if not found:
        call = f"{as_typed('evaluate')} {id_of(run)}"
        yield f"None was taken of these weights; `{call}` measures them."
    for record in found:
        yield from ("| measure | value | 95 % interval | n |", "|---|---|---|---|")
        for name, one in record["measures"].items():
            if one["value"] is not None:
                interval = f"{one['low']:.4g} to {one['high']:.4g}" if "low" in one else ""
                yield f"| {name} | {one['value']:.4g} | {interval} | {one.get('n', '')} |"
        yield from ("", f"Protocol: {record['protocol']}.", "")
