"""When the process that a task has started is to save and stop: on SIGTERM, SIGUSR2 and SIGINT, and
when the process at the other end of the pipe that its standard input is has gone.

Those signals are blocked from the first instant on and taken by a thread that waits for them.
SLURM sends them to every process of a step, and children inherit the block: what this process has
started (W&B's service, a compiler) lives on until all is saved.
"""

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def stop_asked() -> Callable[[], bool]:
    """Block the signals for good; whether one has come, or the starter of this process has gone."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    asked = threading.Event()

    def wait_for_signals() -> None:
        while True:
            name = signal.Signals(signal.sigwait(SIGNALS)).name
            print(f"{name}: saving, then stopping", file=sys.stderr, flush=True)
            asked.set()

    def wait_for_starter() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        asked.set()

    threading.Thread(target=wait_for_signals, daemon=True).start()
    if stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        threading.Thread(target=wait_for_starter, daemon=True).start()
    return asked.is_set
