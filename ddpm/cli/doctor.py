"""Diagnosis of this machine and what it means: `ddpm doctor [--json]`, a line each.

Looks at the machine alone: nothing is sent, no secret is read out, no file is written. Works where
packages are missing, since that is a finding too. Always exits 0: a machine without a GPU is not
ill. On a terminal a table; piped, plain lines; --json, a list of objects.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from ddpm.cli.options import command_line

_GIB = 2**30
_LEAST_DISK_GIB = 5
_CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16")
_LIBRARIES = {
    "submitit": "queueing bulk jobs",
    "numpy": "shards and evaluation",
    "webdataset": "shards in WebDataset's layout",
    "pillow": "packing and reading PNG, JPEG and WebP images",
    "safetensors": "checkpoints",
    "scikit-learn": "the embedded digits",
    "omegaconf": "reading configurations",
    "vl-convert-python": "charts of the report",
    "jinja2": "the page of the report",
    "pandas": "tables of the report",
    "rich": "tables and progress on the terminal",
}


@dataclass(frozen=True)
class Diagnosis:
    """One thing looked for: was it found, in which version (or size), and what that means."""

    name: str
    is_found: bool
    version: str
    meaning: str


def examine() -> list[Diagnosis]:
    """Everything looked for, in the order it is shown."""
    torch = _import("torch")
    findings = [_python(), _torch(torch), _cpu(torch), _memory(), *_gpus(torch)]
    findings += [_cuda(torch), _bf16(torch), _compile(torch), *_collectives(torch)]
    return [*findings, _disk(), _ray(), *_slurm(), _wandb(), *_libraries()]


def _python() -> Diagnosis:
    is_new = sys.version_info[:2] >= (3, 11)
    meaning = "new enough" if is_new else "too old: install Python 3.11 or newer"
    return Diagnosis("Python", is_new, platform.python_version(), meaning)


def _torch(torch: ModuleType | None) -> Diagnosis:
    if torch is None:
        return Diagnosis(
            "torch", False, _version("torch"), "cannot be imported: run `make install`"
        )
    return Diagnosis("torch", True, torch.__version__, "training and sampling run")


def _cpu(torch: ModuleType | None) -> Diagnosis:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = f"{torch.get_num_threads()} threads per process" if torch else "threads unknown"
    meaning = f"torch uses {threads}; trials that run side by side take one thread each"
    return Diagnosis("CPU", True, f"{cores} cores", meaning)


def _memory() -> Diagnosis:
    psutil = _import("psutil")
    if psutil is None:
        return Diagnosis("memory", False, "", "size unknown: psutil is missing")
    memory = psutil.virtual_memory()
    limit = _cgroup_memory_limit()
    total = memory.total if limit is None else min(memory.total, limit)
    free = min(memory.available, total) / _GIB
    meaning = f"{free:.1f} GiB free now; a sweep of digits takes less than 6 GiB"
    return Diagnosis("memory", True, f"{total / _GIB:.1f} GiB", meaning)


def _cgroup_memory_limit() -> int | None:
    """Bytes this container may use; None where there is no limit to be read."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _gpus(torch: ModuleType | None) -> Iterator[Diagnosis]:
    if torch is None or not torch.cuda.is_available():
        meaning = "training runs on the CPU: fine for digits, slow above 32x32 pixels"
        yield Diagnosis("GPU", False, "", meaning)
        return
    for index in range(torch.cuda.device_count()):
        try:
            properties = torch.cuda.get_device_properties(index)
        except RuntimeError as error:  # taken by someone else, or fallen off the bus
            reason = str(error).partition("\n")[0]
            yield Diagnosis(f"GPU {index}", False, "", f"cannot be used: {reason}")
            continue
        size = f"{properties.total_memory / _GIB:.0f} GiB"
        capability = f"compute capability {properties.major}.{properties.minor}"
        yield Diagnosis(f"GPU {index}", True, f"{properties.name}, {size}", f"used; {capability}")


def _cuda(torch: ModuleType | None) -> Diagnosis:
    built_for = torch.version.cuda if torch else None
    has_driver = shutil.which("nvidia-smi") is not None
    if built_for is None:
        advice = "; but NVIDIA's driver is here: install torch for CUDA" if has_driver else ""
        meaning = "this torch is a CPU build" if torch else "torch is missing"
        return Diagnosis("CUDA", False, "", meaning + advice)
    if not torch or not torch.cuda.is_available():
        driver = "the driver does not show a GPU" if has_driver else "no NVIDIA driver is here"
        return Diagnosis("CUDA", False, built_for, f"torch is built for it, but {driver}")
    return Diagnosis("CUDA", True, built_for, "torch sees the GPUs")


def _bf16(torch: ModuleType | None) -> Diagnosis:
    if torch is not None and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Diagnosis("bf16", True, "GPU", "PRECISION: bf16 is fast, with no loss scaling")
        return Diagnosis("bf16", False, "GPU", "not in this GPU: use PRECISION: fp16, or fp32")
    features = _cpu_features().intersection(_CPU_BF16)
    if features:
        meaning = "PRECISION: bf16 runs; on small networks fp32 is often faster"
        return Diagnosis("bf16", True, f"CPU {', '.join(sorted(features))}", meaning)
    return Diagnosis("bf16", False, "", "emulated by this CPU, slowly: use PRECISION: fp32")


def _cpu_features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    flags = (line for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(flags, "").partition(":")[2].split())


def _compile(torch: ModuleType | None) -> Diagnosis:
    candidates = (shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++"))
    compiler = next((path for path in candidates if path), "")
    on_gpu = torch is not None and torch.cuda.is_available()
    missing = [] if compiler else ["a C++ compiler (g++)"]
    if on_gpu and not _version("triton"):
        missing.append("triton")
    if torch is None:
        missing.append("torch")
    if missing:
        meaning = f"COMPILE: true would fail for want of {' and '.join(missing)}; leave it false"
        return Diagnosis("torch.compile", False, "", meaning)
    gain = "pays on a GPU in long runs" if on_gpu else "gains little on a CPU"
    return Diagnosis("torch.compile", True, Path(compiler).name, f"COMPILE: true works; it {gain}")


def _collectives(torch: ModuleType | None) -> Iterator[Diagnosis]:
    distributed = torch.distributed if torch and torch.distributed.is_available() else None
    has_nccl = bool(distributed and distributed.is_nccl_available())
    number = ".".join(map(str, torch.cuda.nccl.version())) if torch and has_nccl else ""
    can = "train together" if has_nccl else "cannot train together"
    yield Diagnosis("NCCL", has_nccl, number, f"several GPUs {can}")
    has_gloo = bool(distributed and distributed.is_gloo_available())
    meaning = "workers on CPUs train together" if has_gloo else "several CPU workers cannot train"
    yield Diagnosis("gloo", has_gloo, "", meaning)


def _disk() -> Diagnosis:
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    is_enough = free >= _LEAST_DISK_GIB
    advice = "" if is_enough else f": less than {_LEAST_DISK_GIB} GiB, set OUTPUT_DIR elsewhere"
    return Diagnosis("disk", is_enough, f"{free:.1f} GiB free", f"in this folder{advice}")


def _ray() -> Diagnosis:
    number = _version("ray")
    if not number:
        return Diagnosis("Ray", False, "", "sweeps and several workers need it: run `make install`")
    if os.environ.get("RAY_ADDRESS"):
        return Diagnosis("Ray", True, number, "RAY_ADDRESS is set: joins that running cluster")
    return Diagnosis("Ray", True, number, "starts a cluster of its own on this machine when needed")


def _slurm() -> Iterator[Diagnosis]:
    for command, use in (("sbatch", "submits the jobs of slurm/"), ("srun", "starts their steps")):
        path = shutil.which(command)
        meaning = use if path else "no SLURM here: everything runs on this machine alone"
        yield Diagnosis(command, path is not None, _slurm_version(path), meaning)
    job = os.environ.get("SLURM_JOB_ID", "")
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    inside = f"inside an allocation of {nodes} node(s), all of it used"
    meaning = inside if job else "not inside an allocation"
    yield Diagnosis("SLURM job", bool(job), job, meaning)


def _slurm_version(path: str | None) -> str:
    if path is None:
        return ""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "does not answer"
    return answer.stdout.strip().removeprefix("slurm ") or "does not answer"


def _wandb() -> Diagnosis:
    number = _version("wandb")
    if not number:
        return Diagnosis("W&B", False, "", "runs are not mirrored there: run `make install`")
    from ddpm.tracking import has_wandb_key  # needs packages that may be missing without W&B

    if has_wandb_key():
        return Diagnosis("W&B", True, number, "a key is there: WANDB.MODE: online works")
    meaning = "no key: runs are logged offline; `wandb login`, then `wandb sync` uploads them"
    return Diagnosis("W&B", True, number, meaning)


def _libraries() -> Iterator[Diagnosis]:
    for name, use in _LIBRARIES.items():
        number = _version(name)
        meaning = use if number else f"{use}: missing, run `make install`"
        yield Diagnosis(name, bool(number), number, meaning)


def _import(name: str) -> ModuleType | None:
    """A package, or None where it is missing or broken (a torch without its libraries: OSError)."""
    try:
        return import_module(name)
    except (ImportError, OSError):
        return None


def _version(package: str) -> str:
    """The installed version, read without importing the package; "" where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def show(findings: list[Diagnosis]) -> None:
    """The findings as a table on a terminal; as one plain line each elsewhere, or without rich."""
    rows = [
        (each.name, "yes" if each.is_found else "no", each.version, each.meaning)
        for each in findings
    ]
    if not sys.stdout.isatty() or _import("rich") is None:
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            print("  ".join((*cells, row[3])))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "found", "version", "what it means", title="What this machine offers")
    for row in rows:
        table.add_row(*row, style="" if row[1] == "yes" else "dim")
    Console(markup=False, highlight=False).print(table)


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm doctor`."""
    result = command_line("doctor", __doc__)
    result.add_argument("--json", action="store_true", help="print a list of objects")
    return result


def main(argv: list[str] | None = None) -> int:
    """Prints the findings; 0."""
    args = parser().parse_args(argv)
    findings = examine()
    if args.json:
        print(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        show(findings)
    return 0
