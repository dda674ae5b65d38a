"""Staging as a process, for tests that kill it or start several at once.

Arguments: the folder of shards, where to stage.
"""

import logging
import sys

from ddpm.data.index import open_index
from ddpm.data.staging import staged
from ddpm.errors import run_main


def main() -> int:
    """Stage, say so, and keep the copies in use until a line comes in."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    with staged(open_index(sys.argv[1]), sys.argv[2]) as folder:
        print("folder", folder, flush=True)
        sys.stdin.readline()
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
