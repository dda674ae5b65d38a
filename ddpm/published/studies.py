"""The published results that are shipped, by name."""

from collections.abc import Callable
from dataclasses import dataclass

from ddpm.published import (
    few_steps,
    hidden_plane_result,
    loss_space,
    terminal_snr,
    truncated_snr,
)
from ddpm.published.claims import Result
from ddpm.published.trials import Options


@dataclass(frozen=True, kw_only=True)
class Study:
    """A result that can be made.  time: on two quiet cores, whole and with --short."""

    question: str
    time: str
    make: Callable[[Options], Result]
    has_sweep: bool = True


STUDIES: dict[str, Study] = {
    "hidden_plane": Study(
        question="which prediction types find a plane hidden in up to 512 dimensions?",
        time="about 30 minutes; 4",
        make=hidden_plane_result.result,
        has_sweep=False,
    ),
    "loss_space": Study(
        question="does the loss space matter more than what the network says? (Fashion-MNIST)",
        time="about 30 minutes; 5",
        make=loss_space.result,
    ),
    "truncated_snr": Study(
        question="does noise prediction diverge under the truncated SNR?",
        time="about 20 minutes; 5",
        make=truncated_snr.result,
    ),
    "few_steps": Study(
        question="linear against cosine in few steps, and with a part of the chain skipped",
        time="about 12 minutes; 5",
        make=few_steps.result,
    ),
    "terminal_snr": Study(
        question="does the signal left at t = T shift the brightness of samples as predicted?",
        time="about 12 minutes; 3",
        make=terminal_snr.result,
    ),
}
