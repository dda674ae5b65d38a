"""Two jobs on one node: neither sees the other's Ray, and nobody without the token sees either."""

import json
import os
import sys
from pathlib import Path

from tests.slurm.hosts import wait_until
from tests.slurm.jobs import Job, Train, rows, run_of
from tests.slurm.lab import Lab

ATTACH = """
import json, sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print(json.dumps(sorted(node["NodeManagerAddress"] for node in ray.nodes())))
"""


def head(root: Path) -> Path:
    """The folder of the one job that runs below a TRAINING.OUTPUT_DIR, once its Ray listens."""
    wait_until("Ray's head listens", lambda: list(root.glob(".jobs/*/head.json")), 90)
    return next(root.glob(".jobs/*/head.json")).parent


def attach(lab: Lab, folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code and words of a stranger on n1 who tries the address of a job's Ray."""
    address = json.loads((folder / "head.json").read_text())["address"]
    settings = [f"{name}={value}" for name, value in environment.items()]
    done = lab.nodes["n1"].run(
        *["env", "RAY_AUTH_MODE=token", f"HOME={folder.parent}", *settings],
        *["timeout", "40", sys.executable, "-c", ATTACH, address],
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_two_jobs_share_a_node_and_no_stranger_gets_in(
    lab: Lab, train: Train, folder: Path
) -> None:
    changed = {"TRAINING.HYPER_PARAMETERS.EPOCHS": 150, "CLUSTER.NUM_WORKERS": 2}
    roots = [folder / "one", folder / "two"]
    jobs: list[Job] = [
        train(root, "--nodelist=n1", "--cpus-per-task=2", changed=changed) for root in roots
    ]
    folders = [head(root) for root in roots]
    addresses = {json.loads((one / "head.json").read_text())["address"] for one in folders}
    tokens = [(one / "token").read_text() for one in folders]
    for job, root in zip(jobs, roots, strict=True):
        job.wait_for_rows(root, 5)
    assert all(job.state == "RUNNING" for job in jobs) and all(rows(root) for root in roots)
    assert len(addresses) == 2 and len(set(tokens)) == 2
    assert all(os.stat(one / "token").st_mode & 0o777 == 0o600 for one in folders)

    own = attach(lab, folders[0], RAY_AUTH_TOKEN_PATH=str(folders[0] / "token"))
    assert own[0] == 0 and own[1].count("10.") == 1, own
    wrong = attach(lab, folders[0], RAY_AUTH_TOKEN_PATH=str(folders[1] / "token"))
    assert wrong[0] != 0 and "uthentication" in wrong[1], wrong
    none = attach(lab, folders[0])
    assert none[0] != 0 and "oken" in none[1], none

    for job, root in zip(jobs, roots, strict=True):
        job.completes()
        assert json.loads((run_of(root) / "DONE.json").read_text())["summary"]["steps"] == 150
