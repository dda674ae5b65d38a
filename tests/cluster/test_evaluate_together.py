"""An evaluation by two Ray workers: interrupted, then to its end, with the numbers of one."""

import json
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest

from ddpm.cli import evaluate
from ddpm.cli.main import launch
from ddpm.errors import InputError
from tests.support.digits_runs import digit_images, digits_run
from tests.support.processes import exit_codes, forked, until

RECORD = "evaluation_of_samples_pixels.json"


def has_workers(driver: BaseProcess) -> bool:
    with suppress(psutil.Error):  # processes come and go
        children = psutil.Process(driver.pid).children(recursive=True)
        return any("TrainWorker" in " ".join(child.cmdline()[:1]) for child in children)
    return False


def measures(run: Path) -> dict[str, dict[str, float]]:
    return json.loads((run / RECORD).read_text())["measures"]


def images(run: Path) -> np.ndarray:
    (path,) = (run / "generated").glob("*.npz")
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"]


def left_over(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix in (".ray", ".tmp", ".part")]


@pytest.mark.ray
@pytest.mark.timeout(1200)
@pytest.mark.long
def test_two_workers_draw_the_images_and_find_the_numbers_of_one(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, shared = (digits_run(digits, tmp_path / name) for name in ("alone", "shared"))
    options = ["--num", "300", "--features", "pixels"]
    assert evaluate.main([str(alone), *options]) == 0
    argv, said = [str(shared), *options, "--workers", "2"], tmp_path / "said"
    driver = forked(launch, "evaluate", argv, said=said)
    until("it has workers", lambda: driver.exitcode is not None or has_workers(driver))
    os.kill(driver.pid or 0, signal.SIGINT)
    assert exit_codes([driver], 200) == [75], said.read_text()
    assert "run the same command again" in said.read_text()
    assert not (shared / RECORD).exists() and left_over(tmp_path) == []

    assert evaluate.main(argv) == 0
    assert "protocol: 300 samples" in capsys.readouterr().out
    assert (images(shared) == images(alone)).all()
    one, two = measures(alone), measures(shared)
    assert one.keys() == two.keys()
    for key, found in one.items():
        for name in ("value", "low", "high") if found["value"] is not None else ():
            assert two[key][name] == pytest.approx(found[name], rel=1e-9), (key, name)
    metrics = shared.parents[2] / "metrics"
    assert left_over(metrics) == [] and not list(metrics.rglob("evaluation-*"))


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused_before_ray_starts(digits: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, images=digit_images(63)[0])
    cache = str(tmp_path / "cache")
    words = [str(path), "--against", str(digits), "--cache", cache, "--features", "pixels"]
    with pytest.raises(InputError, match="63 images are too few"):
        evaluate.main([*words, "--workers", "2"])
    with pytest.raises(InputError, match="--workers 0: give 1 at least"):
        evaluate.main([*words, "--workers", "0"])
    run = digits_run(digits, tmp_path / "run")
    with pytest.raises(InputError, match="EXPORT_INTERM is for one worker"):
        evaluate.main([str(run), "IMAGE_GENERATION.EXPORT_INTERM=true", "--workers", "2"])
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.slow
def test_a_dry_run_says_how_many_workers(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = digits_run(digits, tmp_path)
    assert evaluate.main([str(run), "--workers", "3", "--dry-run"]) == 0
    assert "with 3 worker(s)" in capsys.readouterr().out
