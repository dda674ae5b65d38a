"""`python -m ddpm` is the command `ddpm`."""

import sys

from ddpm.cli.main import cli

if __name__ == "__main__":
    sys.exit(cli())
