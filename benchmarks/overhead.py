"""Training speed through Ray Train with one worker against the same loop without Ray, in one run.

    python benchmarks/overhead.py [--rounds 10] [--steps 100] [--threads 1]

Rounds are interleaved, and their order alternates, so that a drift of the machine hits both. What
is compared is images/s of the training loop itself; the seconds Ray takes to start are shown apart.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ddpm import config
from ddpm.cluster import ray_train
from ddpm.cluster.ray_cluster import running_ray
from ddpm.cluster.workers import Workers, available_cpus
from ddpm.data import preparing
from ddpm.runs.directory import RunDirectory
from ddpm.training.worker import TrainingJob

ROOT = Path(__file__).resolve().parent.parent
PLAIN = """
import json, sys
from ddpm.distributed import Group
from ddpm.training import TrainingJob, work
work(TrainingJob(**json.loads(sys.argv[1])), Group())
"""


def make_job(root: Path, name: str, steps: int, threads: int) -> TrainingJob:
    """A digits training of `steps` optimizer steps with one report, and next to no evaluation."""
    loaded = config.load(
        ROOT / "configs" / "digits.yaml",
        [
            f"TRAINING.OUTPUT_DIR={root}",
            "TRAINING.INLINE_GEN.ENABLE=false",
            "TRAINING.INLINE_GEN.NUMS=1",
            "TRAINING.HYPER_PARAMETERS.EPOCHS=1",
            f"TRAINING.HYPER_PARAMETERS.STEPS_PER_EPOCH={steps}",
            "TRAINING.HYPER_PARAMETERS.WARMUP_STEPS=1",
            "EVALUATION.NUM=1",
            "IMAGE_GENERATION.NUM_STEPS=1",
            "WANDB.MODE=disabled",
        ],
    )
    index = preparing.prepare(loaded)
    return TrainingJob(
        config=config.to_dict(loaded),
        run_dir=str(root / f"{name}_00000000"),
        data_dir=str(index.folder.absolute()),
        threads=threads,
        command=("overhead",),
    )


def plain(job: TrainingJob) -> None:
    """The loop in a fresh process, no Ray."""
    import json

    subprocess.run([sys.executable, "-c", PLAIN, json.dumps(asdict(job))], check=True)


def through_ray(job: TrainingJob) -> None:
    """The same loop in a Ray Train worker."""
    ray_train.run(job, Workers(count=1, cpus=job.threads, gpus=0))


def main() -> int:
    """Print the table; 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of the worker")
    args = parser.parse_args()
    threads, speeds, starts = args.threads, {plain: [], through_ray: []}, {}
    with tempfile.TemporaryDirectory() as folder, running_ray():
        for number in range(args.rounds):
            for engine in (plain, through_ray) if number % 2 else (through_ray, plain):
                job = make_job(Path(folder), f"{engine.__name__}{number}", args.steps, threads)
                began = time.perf_counter()
                engine(job)
                wall = time.perf_counter() - began
                summary = RunDirectory(Path(job.run_dir)).summary
                speeds[engine].append(summary["images_per_s"])
                starts.setdefault(engine, []).append(wall - summary["seconds"])
            print(
                f"round {number + 1}/{args.rounds}: "
                f"{speeds[plain][-1]:.0f} plain, {speeds[through_ray][-1]:.0f} Ray images/s"
            )
    ratios = np.array(speeds[through_ray]) / np.array(speeds[plain])
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    print(
        f"plain        {np.median(speeds[plain]):7.0f} images/s (median of {args.rounds}), "
        f"{np.median(starts[plain]):.1f} s beside the loop"
    )
    print(
        f"Ray Train    {np.median(speeds[through_ray]):7.0f} images/s (median of {args.rounds}), "
        f"{np.median(starts[through_ray]):.1f} s beside the loop"
    )
    print(
        f"ratio        {np.median(ratios):.3f}  (95 % bootstrap interval of the median "
        f"{low:.3f} to {high:.3f}; goal: at least 0.97; {threads} threads)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
