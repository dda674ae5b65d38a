"""`python launch/sample.py` is `ddpm sample`."""

import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    sys.exit(launch("sample"))
