"""A run to draw from, the same for all these tests: read it; to change one, make another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ddpm.sampling.generation import Generated, ImageGenerator
from ddpm.sampling.request import read_request
from tests.support.small_run import make_run, overrides

Draw = Callable[..., Generated]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def draw(run: Path, tmp_path: Path) -> Draw:
    """Draws with IMAGE_GENERATION keys as keyword arguments, into a folder of the test's own."""

    def drawn(batch_size: int = 4, ema: float | None = None, **keys: object) -> Generated:
        words = overrides(**{"GEN_SAVE_DIR": tmp_path / "out", **keys})
        request = read_request(run, words, ema=ema, batch_size=batch_size)
        return ImageGenerator(request).run()

    return drawn
