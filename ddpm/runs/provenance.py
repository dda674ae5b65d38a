"""Provenance: code, versions, machine and command of each attempt at a run.

An attempt is one execution of the command; a resumed run has several. Facts that can change the
bits of the result are compared between attempts. Secrets stay out: no environment variable is
recorded, and what looks like a credential on the command line is masked.
"""

import hashlib
import os
import platform
import re
import secrets
import shlex
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ddpm.runs import storage

PACKAGES = ("torch", "numpy", "safetensors", "webdataset", "ray", "wandb")
# Facts that a bit-identical continuation needs unchanged, and what to call them.
DECIDES_BITS = {
    "source_sha256": "the code of ddpm",
    "torch": "torch",
    "cpu_capability": "the CPU capability",
    "gpus": "the GPUs",
}
_SECRET_NAME = re.compile(r"(?i)(api[_-]?key|token|secret|passw|credential)")
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
_MASK = "***"
_PACKAGE = Path(__file__).parent.parent
_FROZEN = "frozen.json"  # beside a copy of the package: the state of git when it was made


def attempt(command: Sequence[str]) -> dict[str, Any]:
    """The facts of this execution, as JSON values."""
    return {
        "started": now(),
        "command": masked(command),
        "git": git_state(),
        "source_sha256": source_sha256(),
        "frozen": str(_PACKAGE.parent) if (_PACKAGE.parent / _FROZEN).exists() else None,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpu": cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "job": os.environ.get("SLURM_JOB_ID"),
    }


def now() -> str:
    """The time, as ISO 8601 has it."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def ended(attempts: Sequence[Mapping[str, Any]], sign: Path) -> list[Mapping[str, Any]]:
    """The attempts with the end of the last: when it last wrote the file `sign`, if it ever did."""
    if not attempts or not sign.exists():
        return list(attempts)
    last = datetime.fromtimestamp(sign.stat().st_mtime).astimezone()
    end = max(last, datetime.fromisoformat(attempts[-1]["started"]))
    return [*attempts[:-1], {**attempts[-1], "ended": end.isoformat(timespec="seconds")}]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Changes between two attempts that can change the bits of the result, one line each."""
    return [
        f"{what} changed from {_short(before.get(key))} to {_short(now.get(key))} since the last "
        "attempt; the continuation is valid but may differ from an uninterrupted run in its bits"
        for key, what in DECIDES_BITS.items()
        if before.get(key) != now.get(key)
    ]


def masked(command: Sequence[str]) -> str:
    """The command as one would type it, credentials replaced by ***."""
    secrets = {
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and _SECRET_NAME.search(name) and not Path(value).exists()
    }
    words = []
    hide_next = False
    for word in command:
        name, equals, value = word.partition("=")
        for secret in secrets:
            word = word.replace(secret, _MASK)
        if hide_next:
            word = _MASK
        elif equals and value and _SECRET_NAME.search(name):
            word = f"{name}={_MASK}"
        hide_next = not equals and word.startswith("-") and bool(_SECRET_NAME.search(word))
        words.append(_URL_LOGIN.sub(f"{_MASK}@", word))
    return " ".join(word if _MASK in word else shlex.quote(word) for word in words)


def git_state() -> dict[str, Any] | None:
    """{"commit", "dirty"} of the checkout the package runs from, or was copied from; None outside
    of one.
    """
    if kept := storage.read_json(_PACKAGE.parent / _FROZEN):
        state: dict[str, Any] | None = kept["git"]
        return state
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", str(_PACKAGE)))}


def source_sha256() -> str:
    """SHA-256 over the package's source: what ran, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(_PACKAGE)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def frozen(folder: Path) -> Path:
    """A copy of this code in `folder`/code, one a version: what is edited later does not reach it.

    The package is found there by a PYTHONPATH that begins with it. Raises StorageError.
    """
    home = folder / "code" / source_sha256()[:12]
    if not home.is_dir():
        temporary = home.with_name(f".{home.name}.{secrets.token_hex(4)}.tmp")
        storage.make_folder(home.parent)
        with storage.explained(home):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(_PACKAGE, temporary / _PACKAGE.name, ignore=ignored)
        storage.write_json(temporary / _FROZEN, {"git": git_state()})
        storage.rename(temporary, home)
    return home


def _git(*arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(_PACKAGE), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _short(value: Any) -> str:
    text = ", ".join(value) or "none" if isinstance(value, list) else str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
