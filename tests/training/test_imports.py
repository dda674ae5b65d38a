"""Importing the training loop is cheap: few modules of ours, none of runs' files or of data."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, {module}
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "ddpm"))
"""


def ours(module: str) -> set[str]:
    """The modules of ours that importing one loads, in a process of its own."""
    command = [sys.executable, "-c", SCRIPT.format(module=module)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.slow
def test_the_trainer_loads_at_most_25_modules_of_ours() -> None:
    loaded = ours("ddpm.training.trainer")
    assert "ddpm.training.step" in loaded and len(loaded) <= 25, sorted(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["ddpm.diffusion", "ddpm.diffusion.unet, ddpm.diffusion.ema"])
def test_diffusion_loads_nothing_of_ours_but_itself(module: str) -> None:
    others = {name for name in ours(module) if not name.startswith("ddpm.diffusion")}
    assert others <= {"ddpm", "ddpm.errors"}
