"""The Debian packages of the lab: which are missing, and their installation."""

import os
import shutil
import subprocess
from pathlib import Path

# program -> the package that brings it
PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sbatch": "slurm-client",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
    "ip": "iproute2",
}
# Asked by every package before it starts a daemon: 101 means no.
POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Packages whose programs are not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return sorted({p for name, p in PROGRAMS.items() if shutil.which(name, path=path) is None})


def why_not() -> str | None:
    """What keeps a lab from being started on this machine; None if nothing does."""
    if os.geteuid() != 0:
        return "a SLURM lab needs root: it makes network and process namespaces"
    if missing() and shutil.which("apt-get") is None:
        return f"a SLURM lab needs {', '.join(missing())}, and there is no apt-get to install them"
    trial = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc"]
    try:
        tried = subprocess.run([*trial, "true"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"a SLURM lab needs namespaces: {error}"
    if tried.returncode != 0:
        return f"a SLURM lab needs namespaces, and this machine refuses: {tried.stderr.strip()}"
    return None


def install() -> None:
    """apt-get install what is missing, without starting any daemon. CalledProcessError if apt
    fails.
    """
    packages = missing()
    if not packages:
        return
    ours = not POLICY.exists()
    if ours:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run([*apt, "update"], env=quiet, check=True, timeout=300)
        words = ["install", "--no-install-recommends", *packages]
        subprocess.run([*apt, *words], env=quiet, check=True, timeout=600)
    finally:
        if ours:
            POLICY.unlink()
