"""`python -m experiments NAME`: a published result made again."""

import sys

from experiments.results import cli

if __name__ == "__main__":
    sys.exit(cli())
