"""A trained network as a folder of its own: weights, configuration and a model card.

examples:
  ddpm export RUN OUT --to safetensors
  ddpm export RUN/checkpoints/step-00001000 OUT --to safetensors --ema 0

OUT: model.safetensors, config.yaml, and README.md with the data, the schedule, what was measured
with its intervals, what the training took and how images are drawn. It is there whole or not at
all.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.cli.options import command_line
from ddpm.errors import InputError, as_typed
from ddpm.sampling import parse_ema

if TYPE_CHECKING:
    from ddpm.sampling import LoadedModel

WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
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


def main(argv: list[str] | None = None) -> int:
    """Exports; 0."""
    parser = command_line("export", __doc__)
    parser.add_argument("source", type=Path, help="run directory or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder, made")
    parser.add_argument("--to", choices=["safetensors"], required=True, help="form of the weights")
    parser.add_argument(
        "--ema",
        type=parse_ema,
        metavar="DECAY",
        help="averaged weights; 0 = as trained, unaveraged",
    )
    args = parser.parse_args(argv)
    if args.out.exists():
        raise InputError(f"{args.out} is there already; give another OUT")

    import safetensors.torch
    import torch

    from ddpm.config import to_yaml
    from ddpm.runs import storage
    from ddpm.sampling import load_network

    model = load_network(args.source, args.ema, device=torch.device("cpu"))
    tensors = {name: each.contiguous() for name, each in model.network.state_dict().items()}
    data = safetensors.torch.save(tensors)
    card = "\n".join(_card(model, hashlib.sha256(data).hexdigest())) + "\n"
    storage.make_folder(args.out.absolute().parent)
    with storage.new_folder(args.out.absolute()) as write:
        write(WEIGHTS, data)
        write(CONFIG, to_yaml(model.config).encode())
        write("README.md", card.encode())
    print(f"{args.out}: {model.name} of {model.folder}, with {CONFIG} and a model card, README.md")
    return 0


def _card(model: "LoadedModel", sha256: str) -> Iterator[str]:
    """Lines of the model card, in Markdown."""
    from ddpm.config import architecture_tag
    from ddpm.runs import RunDirectory

    config, training = model.config, model.config.TRAINING
    run = RunDirectory(model.folder.parent.parent)
    facts = run.provenance
    channels, height, width = model.image_shape
    classes = training.NETWORK.NUM_CLASSES
    known = facts.get("data_sha256")
    rows = {
        "data": f"{config.DATASET.NAME}, {height}x{width}x{channels}, {classes or 'no'} classes"
        + (f", index {known}" if known else ""),
        "network": f"{architecture_tag(config)}, "
        f"{sum(each.numel() for each in model.network.parameters()):,} parameters",
        "schedule": f"{training.NETWORK.SCHEDULER}, {training.NETWORK.TIMESTEPS} timesteps",
        "prediction": f"{training.PRED_TYPE}, loss {training.LOSS_FN}",
        "weights": f"{model.name} of step {model.step:,}, {WEIGHTS} with SHA-256 {sha256}",
        "training took": _cost(run.summary),
        "made by": f"run {run.run_id}, ddpm at commit {(facts.get('git') or {}).get('commit')}",
    }
    sigma_data = model.schedule.sigma_data
    if sigma_data is not None:
        rows["sigma_data"] = f"{sigma_data!r}, the standard deviation of the data's values"
    if "imported" in facts:
        rows["imported from"] = f"Keras weights with SHA-256 {facts['imported']['sha256']}"
    yield from ("---", "library_name: ddpm", "pipeline_tag: unconditional-image-generation", "---")
    yield from (f"# {config.DATASET.NAME}, {training.PRED_TYPE}", "", "| | |", "|---|---|")
    yield from (f"| {name} | {text} |" for name, text in rows.items())
    yield from ("", "## Measures", "")
    yield from _measures(run.path, model.sha256)
    labels = "None" if classes is None else f"torch.arange(4) % {classes}"
    steps = str(min(50, training.NETWORK.TIMESTEPS))
    yield from ("", "## Drawing images", "", "In this folder, with the package `ddpm`:", "")
    known = "" if sigma_data is None else f", sigma_data={sigma_data!r}"
    example = _SAMPLING.replace("{sigma_data}", known)
    yield example.replace("{steps}", steps).replace("{labels}", labels)
    yield from ("", "No licence is given here: that of the data and your own decide.")


def _cost(summary: Mapping[str, Any]) -> str:
    hours = {"GPU-hours": "gpu_seconds", "core-hours": "core_seconds", "hours": "seconds"}
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
        yield f"None of these weights is kept; `{as_typed('evaluate')} {run.name}` measures them."
    for record in found:
        yield from ("| measure | value | 95 % interval | n |", "|---|---|---|---|")
        for name, one in record["measures"].items():
            if one["value"] is not None:
                interval = f"{one['low']:.4g} to {one['high']:.4g}" if "low" in one else ""
                yield f"| {name} | {one['value']:.4g} | {interval} | {one.get('n', '')} |"
        yield from ("", f"Protocol: {record['protocol']}.", "")
