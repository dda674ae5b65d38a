"""One node's part of the Ray of a SLURM job: `srun ... python -m ddpm.adapters.ray_node FOLDER`.

It lives until its standard input ends, a pipe that the batch script holds, so that however the
script ends, Ray ends with it. SLURM signals all processes of a job when it stops one; Ray's have
those signals blocked and live on while the training saves.
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from ddpm.adapters.ray_folder import INNER, short_base
from ddpm.allocation import Allocation, node_share
from ddpm.errors import DdpmError, InputError, Interrupted, run_main
from ddpm.job_folder import JobFolder

HEAD_PATIENCE_S = 60.0
KEEP_EVERY_S = 3600.0
OBJECT_STORE_BYTES = 100 << 20  # nothing large travels through Ray: data come from shards
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # SLURM limits the job's memory; Ray would watch the host's, which others fill too
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s would be lost at the end of a training
}


def main() -> None:
    """Ray on this node until standard input ends."""
    share, node = node_share(), os.environ["SLURMD_NODENAME"]
    folder = JobFolder(Path(sys.argv[1]))
    has_ended = _End(folder)
    folder.check(node)
    ctypes.CDLL(None).prctl(SUBREAPER, 1)  # whatever Ray starts stays below this process
    temporary = _temporary_folder(share)
    try:
        with suppress(Interrupted):  # the job has ended while Ray was starting
            ray = _started(share, node, temporary, folder, has_ended)
            _wait_for_the_end(ray, temporary, folder, has_ended)
    finally:
        _kill_descendants()
        shutil.rmtree(temporary, ignore_errors=True)


class _End:
    """Whether this node's part shall end: standard input has ended. An srun that was told to stop
    no longer passes that on; then, whether the job's folder has gone.

    From its making on no signal but SIGKILL ends this process.
    """

    def __init__(self, folder: JobFolder) -> None:
        self._folder, self._ended, self._stopping = folder, threading.Event(), threading.Event()
        for number in BLOCKED:
            signal.signal(number, lambda number, frame: self._stopping.set())
        threading.Thread(target=self._read, daemon=True).start()

    def __call__(self, wait_s: float = 0.0) -> bool:
        """After waiting for it so long at most."""
        if self._ended.wait(wait_s):
            return True
        return self._stopping.is_set() and not self._folder.path.exists()

    def _read(self) -> None:
        while os.read(0, 4096):
            pass
        self._ended.set()


def _started(
    share: Allocation, node: str, temporary: Path, folder: JobFolder, has_ended: _End
) -> subprocess.Popen[bytes]:
    """Ray of this node: its head, or joining that. Interrupted where the job ends meanwhile."""
    if os.environ["SLURM_NODEID"] == "0":
        ip = own_ip(node)
        ray = _start(share, ip, temporary, ["--head", f"--port={_free_port(ip, share)}"])
        folder.announce(_wait_until_up(ray, temporary, has_ended))
        return ray
    address = folder.wait_for_head(2 * HEAD_PATIENCE_S, has_ended)
    ip = own_ip(node, towards=address.rpartition(":")[0])
    return _start(share, ip, temporary, [f"--address={address}"])


def own_ip(node: str, towards: str | None = None) -> str:
    """The address of this node that the others shall use.

    That of the interface DDPM_INTERFACE names, else the one from which `towards` is reached, else
    the one that the node's name stands for. InputError when it has none or only loopback.
    """
    wanted = os.environ.get("DDPM_INTERFACE")
    if wanted:
        for address in psutil.net_if_addrs().get(wanted, []):
            if address.family == socket.AF_INET:
                return address.address
        there = ", ".join(sorted(psutil.net_if_addrs()))
        raise InputError(f"node {node} has no IPv4 on DDPM_INTERFACE={wanted}; it has {there}")
    with suppress(OSError):
        ip = _source_address(towards) if towards else socket.gethostbyname(node)
        if not ip.startswith("127."):
            return ip
    raise InputError(
        f"node {node}: its name stands for no address that other nodes reach; name the interface "
        "to use, such as `export DDPM_INTERFACE=ib0` in slurm/site.env"
    )


def _source_address(target: str) -> str:
    """The address from which this node would talk to `target`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((target, 9))
        return str(probe.getsockname()[0])


def _interface(ip: str) -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == ip for address in addresses):
            return name
    return "lo"


def _free_port(ip: str, share: Allocation) -> int:
    """A free port that follows from the job's number, so that jobs of one node do not collide."""
    first = 20_000 + int(share.job_id) * 7 % 12_000
    for port in range(first, first + 500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((ip, port))
            return port
    raise DdpmError(f"no free port from {first} to {first + 500} on {ip}")


def _temporary_folder(share: Allocation) -> Path:
    """This job's own folder on this node, for its owner alone, with a short path."""
    name = f"ddpm-{os.getuid()}-{share.job_id}-{os.environ['SLURM_NODEID']}"
    folder = short_base(name, "DDPM_SCRATCH") / name
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start of this job
    folder.mkdir(mode=0o700)
    return folder


def _start(
    share: Allocation, ip: str, temporary: Path, place: list[str]
) -> subprocess.Popen[bytes]:
    """`ray start` of this node's share of the job, its words in a log beside its temporaries."""
    interface = _interface(ip)
    env = QUIET | os.environ | {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    env["TMPDIR"] = str(temporary / "tmp")  # of the workers: nothing there outlives the job
    (temporary / "tmp").mkdir()
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *place, "--block"]
    command += [f"--node-ip-address={ip}", f"--temp-dir={temporary / INNER}"]
    command += [f"--num-cpus={share.cpus[0]}", f"--num-gpus={share.gpus_per_node}"]
    command += [f"--object-store-memory={OBJECT_STORE_BYTES}"]
    if share.memory_mb:
        command += [f"--memory={share.memory_mb << 20}"]
    # worker ports as the system gives them: Ray's fixed range would collide with a neighbour's
    command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    if "--head" in place:
        command += ["--include-dashboard=false", "--no-monitor"]
    command += ["--include-log-monitor=false"]
    with (temporary / "ray.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=env,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED),
        )


def _wait_until_up(ray: subprocess.Popen[bytes], temporary: Path, has_ended: _End) -> str:
    """The address of the head that was started; DdpmError when it does not come up."""
    known = temporary / INNER / "ray_current_cluster"
    deadline = time.monotonic() + HEAD_PATIENCE_S
    while not known.exists():
        if has_ended():
            raise Interrupted("the job ended before Ray's head had started")
        if ray.poll() is not None or time.monotonic() > deadline:
            raise DdpmError(f"Ray's head did not start: {_last_words(temporary)}")
        time.sleep(0.05)
    return known.read_text().strip()


def _wait_for_the_end(
    ray: subprocess.Popen[bytes], temporary: Path, folder: JobFolder, has_ended: _End
) -> None:
    """DdpmError with Ray's last words when Ray ends before."""
    kept = time.monotonic()
    while not has_ended(wait_s=0.2):
        if ray.poll() is not None:
            raise DdpmError(f"Ray ended by itself: {_last_words(temporary)}")
        if time.monotonic() > kept + KEEP_EVERY_S:
            folder.keep()
            kept = time.monotonic()


def _kill_descendants() -> None:
    """Kill whatever was started from here, and what that started, until nothing is left."""
    own = psutil.Process()
    while children := own.children(recursive=True):
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=1.0)


def _last_words(temporary: Path) -> str:
    lines = (temporary / "ray.log").read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or "it said nothing"


def cli() -> int:
    """The exit code of main(). A failure is also told to slurm/job.sh, which then stops the job:
    srun would tell it of its own only once all nodes have ended.
    """
    code = run_main(main)
    if code:
        print(f"failed {code}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(cli())
