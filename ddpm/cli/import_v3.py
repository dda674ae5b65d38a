"""Makes a run of the weights that DDPM v3 left in a Keras file, .h5 or .weights.h5.

examples:
  ddpm import-v3 v3.yaml model_checkpoints.h5
  ddpm import-v3 v3.yaml model.weights.h5 TRAINING.OUTPUT_DIR=imported --dry-run

CONFIG is the YAML that v3 was trained with. Layer by layer the weights go into the same network
here, computed as Keras does, so that it predicts what it predicted there (docs/from_v3.md).
The run is for sample, evaluate and report as any other; no data are needed to make it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ddpm.cli.options import command_line
from ddpm.errors import InputError, as_typed
from ddpm.runs import load_file, read_keras

# As v3 trained: layers of Keras, no label ever dropped; the weights are the run's own.
_AS_V3 = (
    "TRAINING.NETWORK.KERAS_LAYERS=true",
    "TRAINING.LABEL_DROP=0.0",
    "TRAINING.EMA_POWER=[]",
    "TRAINING.IS_NEW_TRAIN=true",
    "TRAINING.TRAINED_H5=null",
)


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm import-v3`."""
    result = command_line("import-v3", __doc__)
    result.add_argument("config", type=Path, metavar="CONFIG", help="v3's YAML file")
    result.add_argument("weights", type=Path, metavar="WEIGHTS.h5", help="v3's weights")
    result.add_argument(
        "overrides", nargs="*", default=[], metavar="SECTION.KEY=value", help="changed keys"
    )
    result.add_argument("--dry-run", action="store_true", help="check all, write nothing")
    return result


def main(argv: list[str] | None = None) -> int:
    """Imports; 0."""
    args = parser().parse_intermixed_args(argv)
    run = import_run(args.config, args.weights, args.overrides, dry=args.dry_run)
    if args.dry_run:
        print(f"would make {run}; nothing was written")
        return 0
    print(f"run: {run}\nimages of it: {as_typed('sample', run)}")
    return 0


def import_run(
    config: Path, weights: Path, overrides: Sequence[str] = (), *, dry: bool = False
) -> Path:
    """The run directory of the weights, made unless it is there; dry: all but made.

    Its checkpoint is of step 0: the same weights as trained and averaged, since v3 kept but one.
    """
    loaded = load_file(config, [*_AS_V3, *overrides])
    if (kind := loaded.TRAINING.PRED_TYPE) not in ("noise", "image", "velocity"):
        raise InputError(
            f"{config}: TRAINING.PRED_TYPE is {kind}, which v3 did not train; give noise, image or "
            "velocity, as its file says"
        )
    layers, sha256 = read_keras(weights)

    import torch

    from ddpm.config import network_arguments
    from ddpm.diffusion import UNet, weights_from_keras
    from ddpm.runs import RunDirectory, checkpoint
    from ddpm.training import StepReport, TrainState

    tensors = weights_from_keras(UNet(**network_arguments(loaded)), layers)
    run = RunDirectory.find_or_name(loaded, sha256)
    if dry or checkpoint.steps(run.checkpoints):
        return run.path
    run.start(
        loaded,
        data_sha256=None,
        data_dir=None,
        threads=torch.get_num_threads(),
        command=sys.argv,
        facts={"imported": {"file": str(weights.absolute()), "sha256": sha256}, "total_steps": 0},
    )
    parts = ("model", *(f"ema-{decay:g}" for decay in loaded.TRAINING.EMA_DECAYS))
    state = TrainState(step=0, tensors={**dict.fromkeys(parts, tensors), "optimizer": {}})
    run.record(StepReport(step=0, images=0, metrics={}, state=state))
    run.close()
    return run.path
