"""`python launch/ema_curve.py` is `ddpm ema_curve`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("ema_curve"))
