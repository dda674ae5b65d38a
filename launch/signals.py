"""Stop on request: the first signal asks the training to save and end, a second one ends the
process at once.
"""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from ddpm.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def stop_on_signals() -> Callable[[], bool]:
    """Install the handlers; returns the function that tells whether a stop was asked for."""
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            os._exit(Interrupted.exit_code)
        asked.append(number)
        name = signal.Signals(number).name
        print(f"{name}: saving, then stopping; once more to stop at once", file=sys.stderr)

    for number in SIGNALS:
        signal.signal(number, handler)
    return lambda: bool(asked)
