"""`python launch/evaluate.py` is `ddpm evaluate`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("evaluate"))
