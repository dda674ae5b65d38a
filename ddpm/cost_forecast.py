"""What the trials of a sweep will cost, kept until it can be compared with what they did cost.

    prediction.json    by trial: seconds of cores, GPUs and the wall, and memory, from a probe of a
                       few steps (ddpm/probe.py) taken in a fresh process before the first trial;
                       and, when the sweep has ended, the wall time it took

ddpm/report/predicted.py compares the two.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddpm import config as configuration
from ddpm import durable, prediction, probe
from ddpm.config import Config
from ddpm.errors import DdpmError
from ddpm.probe import Speed
from ddpm.workers import Workers

FILE = "prediction.json"
LEAST_STEPS = 100  # of a trial: a shorter one takes less than a probe of it


def make(
    folder: Path,
    configs: Mapping[str, Config],
    workers: Workers,
    side_by_side: int,
    *,
    imports: Sequence[str] = (),
) -> None:
    """Probes each network that costs something else, and keeps the prediction of every trial.

    imports: modules that the process of a trial holds besides its training's.
    """
    shares = {name: prediction.share(one, workers.count) for name, one in configs.items()}
    probed = {probe.same_cost(one): one for one in shares.values()}
    speeds, once = _probed(probed, workers, imports)
    trials: dict[str, dict[str, float]] = {}
    seconds = []
    for name, config in configs.items():
        speed = speeds[probe.same_cost(shares[name])]
        found = prediction.predict(config, speed, workers.count)
        own = 0.0 if trials else once  # the first trial makes what all use
        trials[name] = {
            "seconds": found.seconds + own,
            "core_seconds": found.core_seconds + own,
            "gpu_seconds": (found.seconds + own) * workers.gpus * workers.count,
            "memory_bytes": speed.memory_bytes,
        }
        seconds.append(found.seconds)
    facts = {
        "device": next(iter(speeds.values())).device,
        "load": os.getloadavg()[0],
        "side_by_side": side_by_side,
        "wall_seconds": once + prediction.wall_s(seconds, side_by_side),
        "trials": trials,
    }
    durable.write_json(folder / FILE, facts)


def finish(folder: Path, wall_seconds: float) -> None:
    """Adds the wall time that all trials took together."""
    facts = durable.read_json(folder / FILE)
    if facts:
        durable.write_json(folder / FILE, facts | {"measured_wall_seconds": wall_seconds})


def _probed(
    configs: Mapping[str, Config], workers: Workers, imports: Sequence[str]
) -> tuple[dict[str, Speed], float]:
    """The speed of each network, and what all need once, measured by a process of its own: so its
    memory is a trial's, and this process holds no GPU.
    """
    request = {
        "configs": {key: configuration.to_dict(config) for key, config in configs.items()},
        "threads": workers.cpus,
        "uses_gpu": workers.gpus > 0,
        "imports": list(imports),
    }
    done = subprocess.run(
        [sys.executable, "-m", "ddpm.cost_forecast"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DdpmError(f"the probe failed: {why}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    speeds = {key: Speed(**speed) for key, speed in answer["speeds"].items()}
    return speeds, answer["once_s"]


def main() -> None:
    """Answers a request on standard input, as JSON."""
    request = json.load(sys.stdin)
    for name in request["imports"]:
        importlib.import_module(name)
    configs = {
        key: configuration.from_dict(plain, source="probe")
        for key, plain in request["configs"].items()
    }
    device = {"threads": request["threads"], "uses_gpu": request["uses_gpu"]}
    speeds = {key: asdict(probe.measure(one, **device)) for key, one in configs.items()}
    print(json.dumps({"speeds": speeds, "once_s": prediction.once_s(configs.values())}))


if __name__ == "__main__":
    main()
