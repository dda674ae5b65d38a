"""Staging as a process, for tests that kill it or start several at once."""

import logging
import sys

from ddpm.data.index import open_index
from ddpm.data.staging import copied


def run(shards: str, place: str) -> int:
    """DATASET.STAGE of a folder of shards; prints what is logged, then the folder of the copies."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    print("folder", copied(open_index(shards), place), flush=True)
    return 0
