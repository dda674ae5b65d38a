"""`python launch/status.py` is `ddpm status`."""

import sys

from ddpm.cli.status import cli

if __name__ == "__main__":
    sys.exit(cli())
