"""`python launch/sample.py` is `ddpm sample`."""

import sys

from ddpm.cli.sample import cli

if __name__ == "__main__":
    sys.exit(cli())
