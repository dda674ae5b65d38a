"""DDPM v3's command: `python run.py --config X.yaml --training`, or --imgen; docs/from_v3.md."""

import argparse
import sys

from ddpm.cli.main import launch

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file of v3")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--training", action="store_const", const="train", dest="name", help="train")
    what.add_argument("--imgen", action="store_const", const="sample", dest="name", help="draw")
    args, more = parser.parse_known_args()
    sys.exit(launch(args.name, [args.config, *more]))
