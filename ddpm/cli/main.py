"""The command `ddpm`: its commands by name, each a file of this folder with `main(arguments)`.

`ddpm train`, `python -m ddpm train` and `python launch/train.py` are the same command.
"""

import io
import os
import sys
from difflib import get_close_matches
from importlib import import_module, metadata

from ddpm.errors import InputError, run_main

# A new command is a file NAME.py here and its line below.
COMMANDS = {
    "train": "one training; again: resume it",
    "sweep": "a grid of trainings, or a search, compared; again: continue it",
    "sample": "images from a trained network, a few or in bulk",
    "evaluate": "FID, KID, precision, recall and others of samples, with intervals",
    "report": "report.html, report.md and tables of a sweep or a run",
    "pack": "images as WebDataset shards with an index",
    "export": "a network as a folder of its own: weights and a model card",
    "import-v3": "a run of the weights that DDPM v3 left in a Keras .h5",
    "cancel": "asks a run, a sweep or images in bulk to save and stop",
    "logs": "the log of a run, or of jobs",
    "status": "progress of runs and sweeps: what runs, waits and failed, and why",
    "doctor": "the machine: devices, packages, disks and what they mean",
    "completion": "a script with which bash completes all of this",
    "init": "copies of slurm/, configs/ and sweeps/ to edit and submit",
}

# Packages that only some commands need: the extra of pyproject.toml that brings each.
EXTRAS = {
    "h5py": "v3",
    "lmdb": "lmdb",
    "matplotlib": "pictures",
    "optuna": "search",
    "torch_fidelity": "inception",
    "wandb_workspaces": "reports",
}


def cli() -> int:
    """The exit code of `ddpm NAME ARGUMENTS`."""
    name = (sys.argv[1:2] or ["--help"])[0]
    sys.argv[0] = "ddpm"
    if name in COMMANDS:
        return launch(name, sys.argv[2:])
    return run_main(lambda: _no_command(name))


def launch(name: str, arguments: list[str] | None = None) -> int:
    """The exit code of one command; arguments: None takes those of this process."""
    given = sys.argv[1:] if arguments is None else arguments
    out = sys.stdout
    if out is sys.__stdout__ and isinstance(out, io.TextIOWrapper) and not out.isatty():
        sys.stdout = _outliving_readers(out)

    def main() -> int:
        try:
            code: int = import_module(f"ddpm.cli.{name.replace('-', '_')}").main(given)
        except ModuleNotFoundError as missing:
            extra = EXTRAS.get((missing.name or "").partition(".")[0])
            if extra is None:
                raise
            raise InputError(f"{missing}: pip install 'ddpm[{extra}]'") from missing
        return code

    return run_main(main)


class _Pipe(io.FileIO):
    """Standard output, which may be closed before the work is done, as by `| head`: what is written
    then is lost and nothing else, since all results are in files.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)  # type: ignore[arg-type]


def _outliving_readers(old: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Pipe(old.fileno(), "w", closefd=False)),
        encoding=old.encoding,
        errors=old.errors,
        line_buffering=old.line_buffering,
    )


def _no_command(name: str) -> int:
    if name == "--version":
        print(f"ddpm {metadata.version('ddpm')}")
        return 0
    if name not in ("--help", "-h", "help"):
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"{name!r} is no command; {hint}give one of {', '.join(COMMANDS)}")
    print("usage: ddpm COMMAND ...      (ddpm COMMAND --help, ddpm --version)\n\ncommands:")
    print(*(f"  {command:12}{line}" for command, line in COMMANDS.items()), sep="\n")
    print("\nexit codes: 0 done, 1 done but trials failed, 2 bad input, 3 the run is in use,")
    print("4 non-finite numbers, 5 storage, 6 budget spent, 75 interrupted: run it again")
    return 0
