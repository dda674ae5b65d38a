"""The command `ddpm`: ddpm train|sweep|sample|evaluate|report|pack|status|doctor ... ."""

import sys
from importlib import import_module, metadata

COMMANDS = ("train", "sweep", "sample", "evaluate", "report", "pack", "status", "ema_curve")


def cli() -> int:
    """The exit code of the command that the first argument names."""
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    if name == "--version":
        print(f"ddpm {metadata.version('ddpm')}")
        return 0
    if name == "doctor":
        from ddpm.cluster import doctor

        sys.argv = ["ddpm doctor", *rest]
        return doctor.cli()
    if name not in COMMANDS:
        print(f"usage: ddpm {'|'.join((*COMMANDS, 'doctor'))} ...  (--help after each)")
        return 0 if name in ("--help", "-h") else 2
    sys.argv = [f"ddpm {name}", *rest]
    code: int = import_module(f"ddpm.cli.{name}").cli()
    return code
