"""Commands called in the process of the tests leave its signal handlers as they were."""

import signal
from collections.abc import Iterator

import pytest

from ddpm.cli.signals import SIGNALS


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
