"""python -m ddpm.adapters.sweep_group GROUP.json: the trials of a group, one after the other.

Exit codes: 0 all done, 1 some failed, 75 stopped after saving: the same command goes on. Stops on
SIGTERM, SIGUSR2 and SIGINT, however often they come, when the sweep's stop file appears, and when
the process that has started it is gone.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from ddpm.adapters.run_trial import FilePoll, Resources, run_trial
from ddpm.adapters.stage_clean import clean_here
from ddpm.adapters.task_signals import stop_asked
from ddpm.errors import Interrupted, run_main
from ddpm.groups import Group
from ddpm.worker import Job


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


if __name__ == "__main__":
    sys.exit(run_main(main))
