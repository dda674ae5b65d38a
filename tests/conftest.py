"""What every test may rely on: one thread, no network, no trace outside its folder.

The environment is set at import, before any test imports torch, and reaches the processes that
tests start.
"""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

# Bits depend on the number of threads, and workers of one test would fight over the cores.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
# Threads that wait by spinning take the core from the process they wait for.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray reads it where it is imported, which a test may do before another starts a cluster.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["MPLBACKEND"] = "Agg"
for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_RUN_ID", "RAY_ADDRESS"):
    os.environ.pop(name, None)

# Bytecode of the tests and of what the processes they start import, whatever the login says.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def is_roomy_memory(folder: str, free: int = 4 * 2**30) -> bool:
    """Whether files can be kept in memory there, and programs run."""
    if not os.path.ismount(folder) or not os.access(folder, os.W_OK):
        return False
    found = os.statvfs(folder)
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > free


# A test's own files are synced by the thousand, which a disk takes minutes for.
if is_roomy_memory("/dev/shm"):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HOME = Path(tempfile.mkdtemp(prefix="ddpm-home-"))
# Matplotlib's fonts and the script of charts take seconds to make: kept, beside pytest's own cache.
CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "xdg"


def pytest_configure() -> None:
    """A home of this session's own, and the umask of a stock login."""
    CACHE.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HOME": str(HOME), "XDG_CACHE_HOME": str(CACHE)}
    os.umask(0o022)


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failed one")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    return (yield) if not item.config.getoption("--no-skips") else refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, Any, pytest.CollectReport]:
    return (yield) if not collector.config.getoption("--no-skips") else refuse_skip((yield))


Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def refuse_skip(report: Report) -> Report:
    """The report of a test or file, failed if it was skipped."""
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {report.longreprtext}"
    return report


@pytest.fixture(autouse=True)
def process_as_it_was() -> Iterator[None]:
    """A test that changes the number of threads or handles signals does so for itself alone."""
    import torch

    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    torch.set_num_threads(1)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scikit-learn's digits as shards, packed once. Read it; to write, copy it."""
    from ddpm.data import open_source, packing

    folder = tmp_path_factory.mktemp("digits") / "shards"
    packing.pack(open_source("digits"), folder)
    return folder


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 200 of them likewise, to be trained on where their number does not matter."""
    import numpy as np
    from sklearn.datasets import load_digits

    from ddpm.data import packing
    from ddpm.data.source import ArraySource

    folder, found = tmp_path_factory.mktemp("few") / "shards", load_digits()
    images = np.round(found.images[:200, ..., None] * (255 / 16)).astype(np.uint8)
    packing.pack(ArraySource(images, found.target[:200]), folder)
    return folder


@pytest.fixture(scope="session")
def digits_output(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OUTPUT_DIR with the digits' classifier, trained for fewer steps and once for all tests."""
    from ddpm.metrics import classifier
    from ddpm.metrics.reference import classifier_features, real_data
    from tests.support.tiny_training import tiny

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "digits-output"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "CLASSIFIER_STEPS", 200)
        classifier_features(real_data(tiny(f"TRAINING.OUTPUT_DIR={folder}"), digits))
    return folder
