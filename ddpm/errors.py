"""The mistakes and accidents the project knows, the exit code of each, and commands as remedies
name them.

0 done; 1 a sweep ended with failed trials; 2 bad config or input; 3 run directory locked by a
living run; 4 non-finite numbers; 5 storage; 6 a sweep's budget is spent and trials are left; 75
interrupted, run the same command again.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_S = 30.0


class DdpmError(Exception):
    """Anything the user is told in plain lines instead of a traceback."""

    exit_code = 1


class InputError(DdpmError):
    """Bad configuration or data. Carries every problem found, one line each; says MOST of them."""

    exit_code = 2
    MOST = 200

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        more = len(self.problems) - self.MOST
        rest = [f"... and {more} problems more"] if more > 0 else []
        super().__init__("\n".join([*self.problems[: self.MOST], *rest]))

    def __reduce__(self) -> tuple[type["InputError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class LockedError(DdpmError):
    """Another living process holds the run directory."""

    exit_code = 3


class NonFiniteError(DdpmError):
    """NaN or infinity in data, loss, gradients or weights; nothing non-finite was saved."""

    exit_code = 4


class StorageError(DdpmError):
    """The storage failed: full, read-only, vanished, or all that was saved is damaged."""

    exit_code = 5


class BudgetSpent(DdpmError):
    """A sweep has spent its TUNE.BUDGET with trials left; a larger one continues."""

    exit_code = 6


class Interrupted(DdpmError):
    """Stopped on request after saving; the same command continues."""

    exit_code = 75


def as_typed(name: str, *words: object) -> str:
    """`ddpm NAME WORDS`, or `python launch/NAME.py WORDS` where this process was started so and
    that file exists; words are quoted as a shell needs them.
    """
    folder = Path(sys.argv[0]).absolute().parent
    is_launcher = folder.name == "launch" and (folder / f"{name}.py").exists()
    program = f"python launch/{name}.py" if is_launcher else f"ddpm {name}"
    return shlex.join([*program.split(), *map(str, words)])


@contextmanager
def said_by_rank_0() -> Iterator[None]:
    """InputError from rank 0 alone of torchrun's processes, which check the same: it ends them all.

    What rank 0 does not see, such as a node without a GPU, the first process of that node says.
    """
    try:
        yield
    except InputError:
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, once rank 0 has ended
            time.sleep(_PATIENCE_S if os.environ["LOCAL_RANK"] == "0" else 2 * _PATIENCE_S)
        raise


def run_main(main: Callable[[], int | None]) -> int:
    """The exit code of main(); known errors become lines on stderr, Ctrl-C becomes 75."""
    try:
        return main() or 0
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except DdpmError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        return Interrupted.exit_code
