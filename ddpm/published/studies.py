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
        time="25 minutes; 4",
        make=hidden_plane_result.result,
        has_sweep=False,
    ),
    "loss_space": Study(
        question="does the loss space matter more than what the network says? (Fashion-MNIST)",
        time="30 minutes; 7",
        make=loss_space.result,
    ),
    "truncated_snr": Study(
        question="does noise prediction diverge under the truncated SNR?",
        time="20 minutes; 4",
        make=truncated_snr.result,
    ),
    "few_steps": Study(
        question="linear against cosine in few steps, and with a part of the chain skipped",
        time="8 minutes; 4",
        make=few_steps.result,
    ),
    "terminal_snr": Study(
        question="does the signal left at t = T shift the brightness of samples as predicted?",
        time="8 minutes; 2",
        make=terminal_snr.result,
    ),
}
