"""How far the nodes are that copy shards for a run: RUN/staging/NODE, a few bytes that are only
shown, gone when the node is ready.
"""

import logging
import socket
import time
from contextlib import suppress
from pathlib import Path

_LOG = logging.getLogger("ddpm.staging")
_FOLDER = "staging"
_NOTE_EVERY_S, _LOG_EVERY_S = 1.0, 30.0


class StageNote:
    """This node's file while the `with` lasts, and a line in the log now and then.

    run_dir: where the file lies; None: nowhere.
    """

    def __init__(self, run_dir: Path | None) -> None:
        self._path = run_dir / _FOLDER / socket.gethostname() if run_dir else None
        self._next_note = self._next_line = 0.0

    def __enter__(self) -> "StageNote":
        self._next_line = time.monotonic() + _LOG_EVERY_S
        if self._path:
            with suppress(OSError):
                self._path.parent.mkdir(0o700, exist_ok=True)
        self.show(0.0)
        return self

    def show(self, share: float) -> None:
        """share: of the bytes, in [0, 1]."""
        now, text = time.monotonic(), f"{100 * share:.0f} %"
        if now >= self._next_line:
            self._next_line = now + _LOG_EVERY_S
            _LOG.info("staging: %s", text)
        if self._path and now >= self._next_note:
            self._next_note = now + _NOTE_EVERY_S
            with suppress(OSError):  # losing it loses nothing
                self._path.write_text(text)

    def __exit__(self, *exception: object) -> None:
        if self._path:
            _remove(self._path)


def read(run_dir: Path) -> str:
    """What the nodes say: `staging n1 34 %, n2 12 %`; empty when none copies."""
    found = []
    with suppress(OSError):  # a note may vanish while it is read
        for note in sorted((run_dir / _FOLDER).iterdir()):
            found.append(f"{note.name} {note.read_text()[:5]}".strip())
    return f"staging {', '.join(found)}" if found else ""


def forget(run_dir: Path) -> None:
    """Removes what killed workers left in the run directory."""
    with suppress(OSError):
        for note in (run_dir / _FOLDER).iterdir():
            _remove(note)


def _remove(note: Path) -> None:
    with suppress(OSError):
        note.unlink(missing_ok=True)
        note.parent.rmdir()  # refused while other nodes copy
