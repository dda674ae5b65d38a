"""`python launch/sweep.py` is `ddpm sweep`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("sweep"))
