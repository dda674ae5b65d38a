"""What submitit runs in a task of a sweep: a process that trains a group of trials."""

from pathlib import Path

from ddpm.adapters.file_task import FileTask
from ddpm.groups import Group


class GroupTask(FileTask):
    """Trains the group in its file. A child that dies (out of memory, a crash) fails the trial it
    was at; another goes on with the rest.
    """

    module = "ddpm.adapters.sweep_group"

    def goes_on(self, reason: str) -> bool:
        """Whether a trial was to blame, so that the others still have a chance."""
        return Group.read(Path(self.file)).record_death(reason) is not None
