"""Copies of slurm/, configs/ and sweeps/ in DIR, to edit and to submit from there.

examples:
  ddpm init my_project

Nothing is overwritten. slurm/site.env names the interpreter that this command runs in, and has
room for the account, partition and modules of your cluster.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from ddpm.cli.options import command_line
from ddpm.errors import InputError, StorageError

SHARE = Path(__file__).resolve().parent.parent / "share"


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm init`."""
    result = command_line("init", __doc__)
    result.add_argument("dir", type=Path, metavar="DIR", help="made if it is not there")
    return result


def main(argv: list[str] | None = None) -> int:
    """Copies the folders; 0."""
    folder = parser().parse_args(argv).dir
    sources = sorted(SHARE.iterdir())
    if there := [str(folder / one.name) for one in sources if (folder / one.name).exists()]:
        raise InputError([f"{path} is there already; give another DIR" for path in there])
    try:
        for source in sources:
            shutil.copytree(source, folder / source.name)
        with (folder / "slurm" / "site.env").open("a") as file:
            file.write(f"\n# by `ddpm init`\nDDPM_PYTHON={shlex.quote(sys.executable)}\n")
    except OSError as error:
        raise StorageError(f"{folder}: {error}") from error
    print(f"{folder}: {', '.join(one.name for one in sources)}. From there:")
    print("  ddpm sweep sweeps/pred_types.yaml")
    print("  sbatch slurm/train.sh configs/digits.yaml")
    return 0
