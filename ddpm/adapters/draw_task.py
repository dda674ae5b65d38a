"""What submitit runs in a task that draws images: a process that draws the units in its file."""

from pathlib import Path

from ddpm.adapters.file_task import FileTask
from ddpm.draws import Draws


class DrawTask(FileTask):
    """Draws the images in its file. A child that dies leaves a hole of one unit; another goes on
    while each of them gets a unit done.
    """

    module = "ddpm.adapters.draw_units"
    _done = 0

    def goes_on(self, reason: str) -> bool:
        """Whether the child has drawn a unit before it died."""
        before, self._done = self._done, len(Draws.read(Path(self.file)).journal.ended)
        print(f"{self.file}: {reason}", flush=True)
        return self._done > before
