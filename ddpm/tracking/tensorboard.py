"""Trainings as TensorBoard's event files, written from what their run directories hold."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.report import ReportFiles
from ddpm.runs import storage
from ddpm.sweep import cell_name
from ddpm.tracking.wandb_log import SAMPLES, shown_name

FOLDER = "tensorboard"


def write_events(made: ReportFiles) -> Path:
    """The folder beside the report with one of each trial, all made anew: the numbers that W&B
    shows, under the same names, and the grids of samples, by step.
    """
    from tensorboardX import SummaryWriter

    folder = made.html.parent / FOLDER
    storage.remove(folder)
    for trial in made.sweep.trials:
        words = f"{cell_name(trial.cell)} seed {trial.seed} " if trial.cell else ""
        with SummaryWriter(str(folder / re.sub(r"[^\w.=-]+", "_", words + trial.name))) as writer:
            steps = trial.metrics.get("step", np.zeros(0))
            for name, column in trial.metrics.items():
                for step, value in zip(steps, column, strict=True):
                    if name != "step" and np.isfinite(value):
                        writer.add_scalar(shown_name(name), value, int(step))
            for path in trial.inline:
                with Image.open(path) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                step = int(path.stem.rpartition("-")[2])
                writer.add_image(SAMPLES, pixels, step, dataformats="HWC")
    return folder
