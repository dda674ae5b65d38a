"""Which states of the reverse process a film shows."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm.sampling.generation import Film
from ddpm.sampling.samplers import SampleState


def filmed(num_steps: int, every: int | None) -> Film:
    """A film of one grey image: after step k of n, x_t is k / n of white."""
    film = Film(num_steps, every)
    for step in range(1, num_steps + 1):
        level = 2 * step / num_steps - 1
        image = torch.full((2, 1, 32, 32), level)
        state = SampleState(x_t=image, x0_hat=-image, t=num_steps - step + 1, s=num_steps - step)
        film.add(torch.arange(2), state)
        film.add(torch.arange(2, 4), state)  # of another batch
    return film


@pytest.mark.parametrize(
    ("num_steps", "every", "steps"),
    [
        (20, None, range(2, 21, 2)),
        (4, None, range(1, 5)),
        (20, 6, (6, 12, 18, 20)),
        (20, 5, (5, 10, 15, 20)),
        (3, 7, (3,)),
    ],
)
def test_every_kth_state_is_shown_and_always_the_last(
    num_steps: int, every: int | None, steps: range
) -> None:
    strip = filmed(num_steps, every).strip(1)[..., 0]
    greys = [round(255 * step / num_steps) for step in steps]
    assert strip.shape == (2 + 2 * 34, 2 + 34 * len(greys))
    np.testing.assert_allclose(strip[18, 18::34], greys, atol=1)
    np.testing.assert_allclose(strip[18 + 34, 18::34], [255 - grey for grey in greys], atol=1)


def test_a_gif_has_a_frame_for_every_state_of_the_strip() -> None:
    film = filmed(20, 6)
    with Image.open(io.BytesIO(film.file(2, "gif"))) as shown:
        assert shown.n_frames == 4 and shown.size == (2 + 2 * 34, 2 + 34)
    with Image.open(io.BytesIO(film.file(2, "strip"))) as shown:
        assert np.asarray(shown).shape == film.strip(2).shape[:2]
