"""The lab, up for the session; jobs of a small training; and a clean cluster after every test."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.slurm import packages
from tests.slurm.hosts import Host, LabError, patience, wait_until
from tests.slurm.jobs import TRAINING, Job, Train, as_words, run_of, submit
from tests.slurm.lab import Lab

HERE = Path(__file__).resolve().parent
DAEMONS = {"munged", "slurmd", "sleep"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")
            asked = item.get_closest_marker("timeout")
            # one that is nearer to the test wins; the load may still grow
            limit = 4 * patience(asked.args[0] if asked else 300)
            item.add_marker(pytest.mark.timeout(limit), append=False)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The cluster; it goes off with this process, however that ends."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("the tests share one SLURM: run them with -n 0")
    if reason := packages.why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="ddpm-slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Lab(Path(folder), tied=True)
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()


@pytest.fixture(autouse=True)
def clean_cluster(lab: Lab) -> Iterator[None]:
    """Every node healthy at the start; at the end no job, process, open port or file is left."""
    yield
    lab.heal()
    lab.ctl.run("scancel", "--user=root,nobody", check=False)
    wait_until("the queue is empty", lambda: not lab.ctl.run("squeue", "-h").stdout, 60)
    try:
        wait_until("nothing is left on the nodes", lambda: not leftovers(lab), 10)
    except LabError:
        left = leftovers(lab)
        remove_files(lab)  # for the tests that follow
        pytest.fail(f"left on the nodes: {left}")


def leftovers(lab: Lab) -> list[str]:
    """What jobs left on the nodes: processes, listening ports, files in /tmp and /dev/shm."""
    found = []
    for name, node in lab.nodes.items():
        found += [f"{name}: {p}" for p in node.tree() if p.name() not in DAEMONS]
        ports = node.run("ss", "-Hltn").stdout.splitlines()
        found += [f"{name}: {line}" for line in ports if not line.split()[3].endswith(":6818")]
        shm = node.run("find", "/dev/shm", "-mindepth", "1").stdout.splitlines()
        found += [f"{name}: {path}" for path in (*shm, *temporary_files(lab, node))]
    return found


def temporary_files(lab: Lab, node: Host) -> list[Path]:
    """What lies in a node's /tmp, seen from outside, but for what is mounted there."""
    mounts = {path.parts[2] for path in (lab.folder, HERE) if path.parts[1] == "tmp"}
    return [path for path in (node.own / "tmp").iterdir() if path.name not in mounts]


def remove_files(lab: Lab) -> None:
    for node in lab.nodes.values():
        for path in temporary_files(lab, node):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def folder(lab: Lab, request: pytest.FixtureRequest) -> Path:
    """A folder of the test's own that all hosts share."""
    path = lab.shared / f"{request.node.name[:40]}-{os.urandom(3).hex()}"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def packed(lab: Lab, digits: Path) -> Path:
    """scikit-learn's digits as shards, where all hosts see them."""
    folder = Path(shutil.copytree(digits, lab.shared / "digits"))
    folder.chmod(0o755)  # for every user
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture(scope="session")
def train(lab: Lab, packed: Path) -> Train:
    """A small training, submitted."""

    def start(root: Path, *options: str, changed: Mapping[str, object] | None = None) -> Job:
        root.mkdir(parents=True, exist_ok=True)
        settings = {"DATASET.PATH": packed, "TRAINING.OUTPUT_DIR": root, **TRAINING}
        words = as_words(settings | dict(changed or {}))
        options = ("--cpus-per-task=1", *options)
        return submit(
            lab, "slurm/train.sh", "configs/digits.yaml", *words, options=options, output=root
        )

    return start


@pytest.fixture(scope="session")
def undisturbed(lab: Lab, train: Train) -> Path:
    """The run directory of such a training on one node, to which nothing happened."""
    root = lab.shared / "undisturbed"
    train(root).completes()
    return run_of(root)


FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """figure(text): a measured figure, shown when the session ends."""
    name = request.node.name
    return lambda text: request.config.stash[FIGURES].append(f"{name}: {text}")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash[FIGURES]:
        terminalreporter.write_line(f"figure: {line}")
