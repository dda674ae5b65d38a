"""`python launch/pack.py` is `ddpm pack`."""

import sys

from ddpm.cli.pack import cli

if __name__ == "__main__":
    sys.exit(cli())
