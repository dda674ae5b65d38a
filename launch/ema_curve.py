"""`python launch/ema_curve.py` is `ddpm ema_curve`."""

import sys

from ddpm.cli.ema_curve import cli

if __name__ == "__main__":
    sys.exit(cli())
