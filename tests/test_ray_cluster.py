"""Clusters of one process, one after the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm.adapters.ray_cluster import ray_cluster
from tests.test_layering import ROOT


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_cluster_of_a_process_starts_as_the_first() -> None:
    """And so does that of a process which inherits the environment."""
    for _ in range(2):
        with ray_cluster(1):
            import ray  # not before: it reads the environment once

            assert ray.get(ray.remote(lambda: 7).remote()) == 7
    assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).stat().st_mode & 0o777 == 0o600
    again = "import os, ddpm.adapters.ray_cluster as r\nwith r.ray_cluster(1): pass\n"
    subprocess.run([sys.executable, "-c", again], cwd=ROOT, check=True)
