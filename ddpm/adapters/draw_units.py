"""python -m ddpm.adapters.draw_units FILE: the images that a file of ddpm/draws.py names.

Exit codes: 0 all drawn, 75 stopped after the batch it was at: the same command goes on. Stops on
SIGTERM, SIGUSR2 and SIGINT, when a file `stop` appears in the series' folder, and when the process
that has started it is gone.
"""

import sys
from pathlib import Path

from ddpm.adapters.task_signals import stop_asked
from ddpm.draws import Draws
from ddpm.errors import DdpmError, run_main
from ddpm.series import STOP, Series


def main(argv: list[str] | None = None) -> int:
    """Draw what is missing of the file's images; the exit code."""
    (path,) = sys.argv[1:] if argv is None else argv
    draws = Draws.read(Path(path))
    asked = stop_asked()  # before torch is imported, which takes seconds
    from ddpm.series_draw import Artist

    journal, stop_file = draws.journal, draws.folder / STOP
    try:
        Artist(Series.open(draws.folder)).draw(
            draws.wanted,
            should_stop=lambda: asked() or stop_file.exists(),
            on_begin=lambda span: journal.begin(str(span)),
            on_end=lambda span: journal.end(str(span), "done"),
        )
    except DdpmError as error:
        journal.exit(error.exit_code)
        raise
    journal.exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
