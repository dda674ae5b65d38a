"""The folder of one Ray session: only its owner enters it, and sockets fit below its path.

Ray opens its --temp-dir to everyone (mode 0777), so that is one within the folder.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ddpm.errors import InputError

LONGEST = 40  # with INNER, session and socket 106 bytes; a socket's path may have 107
INNER = "r"
PREFIX = "ddpm-ray-"
# A process that was killed says nothing: what it started has first to die, as it still writes.
# A dying process of Ray may make a file while its folder is removed: then once more.
REMOVE = """
read -r word || sleep 10
for pause in 0 1 1 1 1 1; do sleep $pause; rm -rf -- "$1" && exit; done
"""


def short_base(name: str, variable: str) -> Path:
    """The folder to make `name` in: that which the environment's `variable` names, else the one
    for temporary files, else /tmp. InputError where none is short enough and can be written to.
    """
    for base in (os.environ.get(variable), tempfile.gettempdir(), "/tmp"):
        path = Path(base or "/").absolute()
        if base and len(str(path / name)) <= LONGEST and os.access(path, os.W_OK):
            return path
    raise InputError(f"no folder with a short path to write to; set {variable} to one, or TMPDIR")


@contextmanager
def session_folder() -> Iterator[Path]:
    """The --temp-dir for a Ray of this process. It is removed at the end of the `with`, or by a
    process of its own after this one was killed.
    """
    base = short_base(PREFIX + 8 * "x", "RAY_TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
    remover = subprocess.Popen(
        ["sh", "-c", REMOVE, "sh", folder],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process alone
    )
    try:
        yield folder / INNER
    finally:
        remover.communicate(b"end\n")
