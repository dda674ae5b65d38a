"""`python launch/status.py` is `ddpm status`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("status"))
