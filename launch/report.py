"""`python launch/report.py` is `ddpm report`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("report"))
