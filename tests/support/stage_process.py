"""Staging as a process, for tests that kill it or start several at once.

Arguments: the folder of shards, DATASET.STAGE.
"""

import logging
import sys

from ddpm.data.index import open_index
from ddpm.data.staging import copied
from ddpm.errors import run_main


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    print("folder", copied(open_index(sys.argv[1]), sys.argv[2]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
