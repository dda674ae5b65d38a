"""`python launch/sweep.py` is `ddpm sweep`."""

import sys

from ddpm.cli.sweep import cli

if __name__ == "__main__":
    sys.exit(cli())
