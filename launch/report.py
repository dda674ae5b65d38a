"""`python launch/report.py` is `ddpm report`."""

import sys

from ddpm.cli.report import cli

if __name__ == "__main__":
    sys.exit(cli())
