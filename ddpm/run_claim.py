"""The claim on a run that has no directory yet: one living process makes it, others learn where.

Several that search at once all find none, and each would make its own. So the first directory of a
run is made under a lock of the run id, held from another search until the directory's own lock is.
The lock file stays: of a file that is removed and made again, two could hold one each.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ddpm import durable, lock, run_names
from ddpm.errors import LockedError
from ddpm.lock import Sign
from ddpm.rundir import RunDirectory

_POLL_S = 0.05
_NAMING_S = 10.0  # the holder names its directory after a search; NFS may show it later


class Claim:
    """The run that this process may start: no other makes a directory for it meanwhile."""

    def __init__(self, run: RunDirectory, held: ExitStack) -> None:
        self.run = run
        self._held: ExitStack | None = held

    def release(self) -> None:
        """To be called once the directory's own lock is held; harmless when called again."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def release_if_held(self) -> None:
        """As release, once another process, such as a worker, is seen to hold the directory."""
        if self._held is not None and self.run.is_held:
            self.release()


@contextmanager
def claimed(run: RunDirectory, *, another: bool = False, wait_s: float = 0.0) -> Iterator[Claim]:
    """`run` as it was searched for, or the run of its id that has been made since.

    another: it shall be made beside others, whatever there is.  Raises LockedError when a living
    process still makes one after `wait_s` seconds. Writes nothing where the directory is there.
    """
    run = RunDirectory(run.path.absolute())
    with ExitStack() as held:
        if not another and not run.path.is_dir():
            sign = _take(run.path, wait_s, held)
            root, run_id = run_names.output_dir(run.path), run_names.id_of(run.path)
            run = RunDirectory.find(root, run_id) or run
            sign(run_dir=str(run.path))
        yield Claim(run, held)


def _take(path: Path, wait_s: float, held: ExitStack) -> Sign:
    """The lock of the run id, taken; LockedError names the directory its holder has chosen."""
    file = run_names.id_lock(path)
    what = f"run {run_names.id_of(path)} in {run_names.output_dir(path)}"
    durable.make_folder(file.parent)
    deadline = time.monotonic() + wait_s
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return held.enter_context(durable.lock(file, what, wait_s=left))
        except LockedError:
            holder = lock.signature(file)
            if chosen := holder.get("run_dir"):
                raise lock.locked(RunDirectory(Path(chosen)).title, holder) from None
            if time.monotonic() >= deadline + _NAMING_S:
                raise
        time.sleep(_POLL_S)
