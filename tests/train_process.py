"""A training worker as a process, for tests that kill it: its argument is a Job as JSON."""

import json
import sys
from pathlib import Path

from ddpm.distributed import process_group
from ddpm.errors import run_main
from ddpm.worker import Job, work


def main() -> int:
    """Work under torchrun's environment variables, one process a rank."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    with process_group() as group:
        work(job, group)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
