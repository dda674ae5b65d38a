"""`python launch/train.py` is `ddpm train`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("train"))
