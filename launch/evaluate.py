"""`python launch/evaluate.py` is `ddpm evaluate`."""

import sys

from ddpm.cli.evaluate import cli

if __name__ == "__main__":
    sys.exit(cli())
