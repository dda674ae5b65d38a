"""A Ray cluster for the length of a `with`: that of the SLURM job, else the one RAY_ADDRESS names,
else one of our own on this machine.

Ray executes what its clients send and its ports are not all on loopback: there is always a token. A
Ray of our own has its sockets and logs in a session folder that only its owner enters. In a SLURM
job each node runs `python -m ddpm.cluster node FOLDER`, and the nodes find each other through a
folder OUTPUT_DIR/.jobs/JOB that lives as long as the job:

    job.json      what all nodes must agree on; a node that does not see it does not see OUTPUT_DIR
    token         the secret without which nobody talks to the job's Ray
    head.json     where Ray's head listens, once it does
"""

import atexit
import ctypes
import json
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path

import psutil

from ddpm.cluster.workers import (
    Machine,
    available_cpus,
    ray_address,
    slurm_job,
    slurm_node,
    workers_for,
    workers_of_evaluation,
)
from ddpm.config import Config
from ddpm.data import source_problems
from ddpm.errors import DdpmError, InputError, Interrupted, run_main
from ddpm.runs import storage

LONGEST = 40  # with INNER, session and socket 106 bytes; a socket's path may have 107
INNER = "r"
PREFIX = "ddpm-ray-"
FOLDER = "DDPM_RAY_FOLDER"  # the variable that names the job's folder to its processes
STALE_S = 86_400.0
_NO_JOB = "--plan is for the batch scripts in slurm/: there is no SLURM job here"
_LOOK_S = 0.3  # all nodes of a job look for the same file
ON_EVERY_NODE = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # 2 s would be lost at the end of a training
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process more; SLURM's signals say it to us
    "RAY_prestart_worker_first_driver": "0",  # trials and workers get processes of their own
}
QUIET = ON_EVERY_NODE | {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
PATIENCE_S = 120.0
TAKEN_BY_RAY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
HEAD_PATIENCE_S = 60.0
KEEP_EVERY_S = 3600.0
OBJECT_STORE_BYTES = 100 << 20  # nothing large travels through Ray: data come from shards
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
NODE_QUIET = ON_EVERY_NODE | {
    "RAY_USAGE_STATS_ENABLED": "0",
    # SLURM limits the job's memory; Ray would watch the host's, which others fill too
    "RAY_memory_monitor_refresh_ms": "0",
}
# A process that was killed says nothing: what it started has first to die, as it still writes.
# A dying process of Ray may make a file while its folder is removed: then once more.
REMOVE = """
read -r word || sleep 10
for pause in 0 1 1 1 1 1; do sleep $pause; rm -rf -- "$1" && exit; done
"""


def short_base(name: str, variable: str) -> Path:
    """The folder to make `name` in: that which the environment's `variable` names, else the one
    for temporary files, else /tmp. InputError where none is short enough and can be written to.
    """
    for base in (os.environ.get(variable), tempfile.gettempdir(), "/tmp"):
        path = Path(base or "/").absolute()
        if base and len(str(path / name)) <= LONGEST and os.access(path, os.W_OK):
            return path
    raise InputError(f"no folder with a short path to write to; set {variable} to one, or TMPDIR")


@contextmanager
def session_folder() -> Iterator[Path]:
    """The --temp-dir for a Ray of this process. It is removed at the end of the `with`, or by a
    process of its own after this one was killed.
    """
    base = short_base(PREFIX + 8 * "x", "RAY_TMPDIR")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
    remover = subprocess.Popen(
        ["sh", "-c", REMOVE, "sh", folder],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process alone
    )
    try:
        yield folder / INNER
    finally:
        remover.communicate(b"end\n")


class JobFolder:
    """The folder of one SLURM job, at `path`; only its owner may enter it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token, self._job, self._head = (path / n for n in ("token", "job.json", "head.json"))

    @classmethod
    def make(cls, output_dir: Path, job: Machine) -> "JobFolder":
        """A fresh folder for this start of the job; what dead jobs left is removed."""
        jobs = output_dir.absolute() / ".jobs"
        folder = cls(jobs / str(job.job_id))
        for old in jobs.glob("*"):
            with suppress(OSError):
                if old == folder.path or time.time() - old.stat().st_mtime > STALE_S:
                    shutil.rmtree(old)
        storage.make_folder(folder.path)
        descriptor = os.open(folder.token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        storage.write_json(folder._job, {"num_nodes": len(job.cpus), "versions": versions()})
        return folder

    def check(self, node: str) -> None:
        """InputError where a node does not fit into the job."""
        if not self._job.exists():
            raise InputError(
                f"node {node} does not see {self._job}, which the job's first node wrote: "
                "TRAINING.OUTPUT_DIR must lie on a file system that all nodes share"
            )
        known = storage.read_json(self._job)["versions"]
        for name, version in versions().items():
            if known[name] != version:
                raise InputError(
                    f"node {node} has {name} {version} but the job's first node has "
                    f"{known[name]}; give all nodes the same environment "
                    "(DDPM_PYTHON, DDPM_MODULES in slurm/site.env)"
                )

    @property
    def num_nodes(self) -> int:
        return int(storage.read_json(self._job)["num_nodes"])

    def announce(self, address: str) -> None:
        """Says where Ray's head listens."""
        storage.write_json(self._head, {"address": address})

    def keep(self) -> None:
        """Says that the job lives, to those that remove what dead jobs left; hourly will do."""
        with suppress(OSError):
            os.utime(self.path)

    def wait_for_head(
        self, patience_s: float, should_stop: Callable[[], bool] = lambda: False
    ) -> str:
        """Address of Ray's head; DdpmError when it is not up in time, Interrupted on request."""
        deadline = time.monotonic() + patience_s
        while (address := self.address) is None:
            if should_stop():
                raise Interrupted("the job ended before Ray's head had started")
            if time.monotonic() > deadline:
                raise DdpmError(f"{self.path}: Ray's head did not start in {patience_s:.0f} s")
            time.sleep(_LOOK_S)
        return address

    @property
    def address(self) -> str | None:
        """Address of Ray's head; None until it is up."""
        try:
            return str(json.loads(self._head.read_text())["address"])
        except FileNotFoundError:
            return None


def versions() -> dict[str, str]:
    """Versions that must be the same on all nodes."""
    return {"Python": platform.python_version(), "Ray": metadata.version("ray")}


def plan(configs: list[Config], *, uses_ray: bool | None, output: Path) -> int:
    """Check configurations against the job's allocation, make the job's folder, write the plan; 0.

    uses_ray: None when it is a matter of the number of workers. Takes no torch and no Ray. Raises
    InputError with every problem.
    """
    job = slurm_job()
    if job is None:
        raise InputError(_NO_JOB)
    problems = source_problems(*configs)
    count = 0
    for config in configs:
        try:
            count = max(count, workers_for(config).count)
        except InputError as error:
            problems += error.problems
        if not config.TRAINING.IS_NEW_TRAIN:
            from ddpm.sampling import start_problems  # loads weights, so it takes torch

            problems += start_problems(config)
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    needs_ray = count > 1 if uses_ray is None else uses_ray
    write_plan(output, JobFolder.make(Path(configs[0].TRAINING.OUTPUT_DIR), job).path, needs_ray)
    return 0


def plan_evaluation(folder: Path, workers: int | None, output: Path) -> int:
    """The same for an evaluation, whose job's folder lies in `folder`."""
    job = slurm_job()
    if job is None:
        raise InputError(_NO_JOB)
    uses_ray = workers_of_evaluation(workers, all_nodes=True).count > 1
    write_plan(output, JobFolder.make(folder, job).path, uses_ray)
    return 0


def write_plan(output: Path, folder: Path | None = None, uses_ray: bool = False) -> None:
    """All is checked, says this file to the batch script: the job's folder, and whether it needs
    Ray ("1" or "0"), each ended by NUL.
    """
    name = b"" if folder is None else os.fsencode(folder)
    output.write_bytes(b"\0".join((name, b"1" if uses_ray else b"0", b"")))


@contextmanager
def running_ray(least_cpus: int = 0) -> Iterator[None]:
    """Ray, initialised. A cluster of our own has the cores this process may use, and least_cpus
    where those are fewer: Ray would wait for ever for more cores than it knows of. Its logs and
    sockets lie in a folder that only this user enters, and go with it.
    """
    folder_of_job = os.environ.get(FOLDER)  # outside of a SLURM job there is none
    job = JobFolder(Path(folder_of_job)) if folder_of_job else None
    address = job.wait_for_head(PATIENCE_S) if job else ray_address()
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    handlers = {number: signal.getsignal(number) for number in TAKEN_BY_RAY}
    if not address:
        _private_token()
    import ray

    place: AbstractContextManager[Path | None] = nullcontext() if address else session_folder()
    with place as folder:
        try:
            if folder is None:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            else:
                ray.init(
                    num_cpus=max(least_cpus, available_cpus()),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                )
            # ray.init has put its own handlers, which die, in the place of ours
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():
                    signal.signal(number, handler)
            if job:
                _wait_for_nodes(job)
            yield
        finally:
            ray.shutdown()


def _wait_for_nodes(job: JobFolder) -> None:
    """Until Ray has all nodes of the job; DdpmError naming how many it lacks."""
    import ray

    wanted, deadline = job.num_nodes, time.monotonic() + PATIENCE_S
    while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
        if time.monotonic() > deadline:
            raise DdpmError(f"{there} of the job's {wanted} nodes joined Ray in {PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _private_token() -> None:
    """A fresh token only this user can read, unless the environment already says how to
    authenticate. It stays until this process ends, for its next cluster: Ray reads it only once.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    if "RAY_AUTH_TOKEN_PATH" in os.environ or "RAY_AUTH_TOKEN" in os.environ:
        return
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)


def run_node(path: Path) -> None:
    """This node's part of the job's Ray, until standard input ends: a pipe that the batch script
    keeps open, so that however the script ends, Ray ends with it. SLURM signals all processes of a
    job when it stops one; Ray's have those signals blocked and live on while the training saves.
    """
    share, node = slurm_node(), os.environ["SLURMD_NODENAME"]
    folder = JobFolder(path)
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
    """End of this node's part: that of standard input, or, where an srun that was told to stop no
    longer passes that on, of the job's folder.

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
    share: Machine, node: str, temporary: Path, folder: JobFolder, has_ended: _End
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


def _free_port(ip: str, share: Machine) -> int:
    """A free port that follows from the job's number, so that jobs of one node do not collide."""
    first = 20_000 + int(share.job_id or 0) * 7 % 12_000
    for port in range(first, first + 500):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((ip, port))
            return port
    raise DdpmError(f"no free port from {first} to {first + 500} on {ip}")


def _temporary_folder(share: Machine) -> Path:
    """This job's own folder on this node, for its owner alone, with a short path."""
    name = f"ddpm-{os.getuid()}-{share.job_id}-{os.environ['SLURM_NODEID']}"
    folder = short_base(name, "DDPM_SCRATCH") / name
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier start of this job
    folder.mkdir(mode=0o700)
    return folder


def _start(share: Machine, ip: str, temporary: Path, place: list[str]) -> subprocess.Popen[bytes]:
    """`ray start` of this node's share of the job, its words in a log beside its temporaries."""
    addresses = psutil.net_if_addrs().items()
    interface = next((name for name, of in addresses if any(a.address == ip for a in of)), "lo")
    env = (
        NODE_QUIET | os.environ | {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    )
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


def serve_node(folder: str) -> int:
    """The exit code of run_node(). slurm/job.sh reads of a failure, and then stops the job: srun
    would say so only once all nodes have ended.
    """
    code = run_main(lambda: run_node(Path(folder)))
    if code:
        print(f"failed {code}", flush=True)
    return code
