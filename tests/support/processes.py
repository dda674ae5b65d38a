"""Processes that tests kill and compare, forked from one that has imported what they need.

Each is a process like any other, with an environment of its own, but it starts in milliseconds; a
Python that imports torch and ddpm takes seconds.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [f"tests.support.{name}" for name in ("processes", "train_process", "moments_process")]
)


def forked(
    target: Callable[..., int],
    *arguments: object,
    env: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> BaseProcess:
    """A started process whose exit code is what target(*arguments) returns.

    env: its whole environment, else this process's.  errors: the file of its standard error.
    """
    given = (target, arguments, dict(env or os.environ), errors)
    process = FORKS.Process(target=_run, args=given)
    process.start()
    return process


def _run(
    target: Callable[..., int],
    arguments: tuple[object, ...],
    env: dict[str, str],
    errors: Path | None,
) -> None:
    os.environ.clear()
    os.environ.update(env)
    if errors is not None:
        with errors.open("wb") as file:
            os.dup2(file.fileno(), 2)
    raise SystemExit(target(*arguments))


def workers(count: int) -> list[dict[str, str]]:
    """The environments of so many workers of one process group, as torchrun makes them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [os.environ | shared | {"RANK": str(rank)} for rank in range(count)]


def exit_codes(processes: list[BaseProcess], timeout: float = 600.0) -> list[int | None]:
    """The exit code of each when it has ended; None: it has not in so many seconds."""
    for process in processes:
        process.join(timeout)
    return [process.exitcode for process in processes]
