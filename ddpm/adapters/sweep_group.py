"""python -m ddpm.adapters.sweep_group GROUP.json: the trials of a group, one after the other.

Exit codes: 0 all done, 1 some failed, 75 stopped after saving: the same command goes on. Stops on
SIGTERM, SIGUSR2 and SIGINT, however often they come, when the sweep's stop file appears, and when
the process at the other end of the pipe that its standard input is has gone.

Those signals are blocked from the first instant on and taken by a thread that waits for them.
SLURM sends them to every process of a step, and children inherit the block: what this process has
started (W&B's service, a compiler) lives on until the trial is saved.
"""

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from ddpm.adapters.run_trial import FilePoll, Resources, run_trial
from ddpm.adapters.stage_clean import clean_here
from ddpm.errors import Interrupted, run_main
from ddpm.groups import Group
from ddpm.worker import Job

SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


def main(argv: list[str] | None = None) -> int:
    """Train what is left of the group; the exit code."""
    (path,) = sys.argv[1:] if argv is None else argv
    group = Group.read(Path(path))
    asked, stop_file = stop_asked(), FilePoll(group.stop_file)
    code = run(group, lambda: asked() or stop_file())
    if group.clean_stage and code != Interrupted.exit_code:
        clean_here([Job(**job).stage for job in group.jobs])
    group.journal.exit(code)
    return code


def run(group: Group, should_stop: Callable[[], bool]) -> int:
    """As main(). Every trial ends in the ledger, or is left to be continued."""
    journal, ends = group.journal, []
    for outcome, job in group.left():
        journal.begin(outcome.trial)
        ended = run_trial(
            outcome,
            Job(**job),
            group.ledger,
            sweep=group.sweep,
            resources=Resources(**group.resources),
            should_stop=should_stop,
        )
        journal.end(outcome.trial, ended)
        ends.append(ended)
        if ended == "stopped":
            break
    if "stopped" in ends or "held" in ends:
        return Interrupted.exit_code
    outcomes = group.ledger.outcomes()
    return int(
        any(o.trial in outcomes and outcomes[o.trial].status == "failed" for o in group.outcomes)
    )


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


if __name__ == "__main__":
    sys.exit(run_main(main))
