"""Processes that tests kill and compare, forked from one that has imported what they need.

Each is a process like any other, with an environment of its own, but it starts in milliseconds; a
Python that imports torch and ddpm takes seconds.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

Found = TypeVar("Found")
FORKS = multiprocessing.get_context("forkserver")
# A command imports what it needs when it runs.
FORKS.set_forkserver_preload(
    [
        *("ddpm.cli.train", "ddpm.cluster.run_training"),
        *("ddpm.cli.sweep", "ddpm.cluster.run_sweep", "ddpm.cluster.ray_tune"),
        *("ddpm.cli.sample", "ddpm.cluster.submit_images", "ddpm.cluster.submit_sweep"),
        *("ddpm.cli.evaluate", "ddpm.cluster.run_evaluation", "ddpm.cluster.ray_train"),
        *(f"tests.support.{name}_process" for name in ("moments", "stage", "train")),
        *("tests.support.processes", "tests.support.shard_data"),
    ]
)


def forked(
    target: Callable[..., int],
    *arguments: object,
    env: Mapping[str, str] | None = None,
    said: Path | None = None,
) -> BaseProcess:
    """A started process whose exit code is what target(*arguments) returns.

    env: its whole environment, else this process's.  said: the file of all that it prints.
    """
    given = (target, arguments, dict(env or os.environ), said)
    process = FORKS.Process(target=_run, args=given)
    process.start()
    return process


def _run(
    target: Callable[..., int],
    arguments: tuple[object, ...],
    env: dict[str, str],
    said: Path | None,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # what the environment says of it, not what was found before
    if said is not None:
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    raise SystemExit(target(*arguments))


@contextmanager
def at_once(
    count: int, target: Callable[..., int], *arguments: object, folder: Path
) -> Iterator[dict[BaseProcess, Path]]:
    """So many forked processes, let go together, with the files in `folder` of what they print;
    none outlives the block.
    """
    ready, go = FORKS.Semaphore(0), FORKS.Event()
    all_ = {}
    try:
        for number in range(count):
            said = folder / f"said-{number}"
            all_[forked(_released, ready, go, target, arguments, said=said)] = said
        for _ in all_:
            assert ready.acquire(timeout=200)
        go.set()
        yield all_
    finally:
        for process in all_:
            process.kill()
            process.join()


def _released(ready: Any, go: Any, target: Callable[..., int], arguments: tuple[Any, ...]) -> int:
    ready.release()
    go.wait()
    return target(*arguments)


def workers(count: int) -> list[dict[str, str]]:
    """The environments of so many workers of one process group, as torchrun makes them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [os.environ | shared | {"RANK": str(rank)} for rank in range(count)]


def until(what: str, found: Callable[[], Found], seconds: float = 300.0) -> Found:
    """The first true value that is found."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)
    return value


def exit_codes(processes: list[BaseProcess], timeout: float = 600.0) -> list[int | None]:
    """The exit code of each when it has ended; None: it has not in so many seconds."""
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]
