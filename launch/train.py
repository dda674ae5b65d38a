"""`python launch/train.py` is `ddpm train`."""

import sys

from ddpm.cli.train import cli

if __name__ == "__main__":
    sys.exit(cli())
