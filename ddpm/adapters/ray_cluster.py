"""A Ray cluster for the length of a `with`: that of the SLURM job, else the one RAY_ADDRESS names,
else one of our own on this machine.

Ray executes what its clients send, so there is always a token: Ray's ports are not all on loopback.
"""

import atexit
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ddpm.adapters.ray_folder import session_folder
from ddpm.errors import DdpmError
from ddpm.job_folder import FOLDER, JobFolder
from ddpm.workers import available_cpus

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
PATIENCE_S = 120.0
TAKEN_BY_RAY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def ray_cluster(least_cpus: int = 0) -> Iterator[None]:
    """Ray, initialised. A cluster of our own has the cores this process may use, and least_cpus
    where those are fewer: Ray would wait for ever for more cores than it knows of. Its logs and
    sockets lie in a folder that only this user enters, and go with it.
    """
    job = _of_the_job()
    address = job.wait_for_head(PATIENCE_S) if job else os.environ.get("RAY_ADDRESS")
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
            _give_back(handlers)
            if job:
                _wait_for_nodes(job)
            yield
        finally:
            ray.shutdown()


def _give_back(handlers: Mapping[signal.Signals, Any]) -> None:
    """Install these signal handlers again: ray.init has put its own, which die, in their place."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _of_the_job() -> JobFolder | None:
    """The folder of the SLURM job whose batch script starts Ray; None outside of one."""
    path = os.environ.get(FOLDER)
    return JobFolder(Path(path)) if path else None


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
    folder = Path(tempfile.mkdtemp(prefix="ddpm-ray-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
