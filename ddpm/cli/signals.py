"""Stop on request: the first signal asks the training to save and end, a second one ends the
process at once.

What comes within a second of the first is no second request: SLURM signals every process of a job,
and its batch script passes on what it gets, so one scancel arrives twice.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

from ddpm.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

SAME_REQUEST_S = 1.0


def stop_on_signals() -> Callable[[], bool]:
    """Install the handlers; returns the function that tells whether a stop was asked for."""
    asked: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if asked and now - asked[0] > SAME_REQUEST_S:
            os._exit(Interrupted.exit_code)
        asked.append(now)
        if len(asked) > 1:
            return
        name = signal.Signals(number).name
        print(f"{name}: saving, then stopping; once more to stop at once", file=sys.stderr)

    for number in SIGNALS:
        signal.signal(number, handler)
    return lambda: bool(asked)


def interrupt_on_signals() -> None:
    """Signals end the command as Ctrl-C does: for one that has nothing to save first."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
