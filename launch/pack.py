"""`python launch/pack.py` is `ddpm pack`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("pack"))
