"""What a run says of itself: train.log, and FAILED.json where it ended in an error.

FAILED.json: {"reason": the error's text, "exit_code": that of the command, "ended": when}. The next
start removes it.
"""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ddpm import durable
from ddpm.errors import DdpmError, Interrupted, LockedError, StorageError

LOG = "train.log"
FAILED = "FAILED.json"
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


@contextmanager
def logging_to(run_dir: Path) -> Iterator[None]:
    """While it lasts, what `ddpm` logs goes to train.log too."""
    handler = logging.FileHandler(run_dir / LOG, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("ddpm")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()


@contextmanager
def failure_recorded(run_dir: Path) -> Iterator[None]:
    """Notes an error that passes through, unless the run may simply go on or is another's."""
    try:
        yield
    except (Interrupted, LockedError):
        raise
    except Exception as error:
        if run_dir.is_dir():  # an error before the first start has no run to belong to
            record_failure(run_dir, error)
        raise


def record_failure(run_dir: Path, error: Exception) -> None:
    """Writes FAILED.json and an ERROR line of train.log, as far as the storage still takes them."""
    text, now = reason(error), datetime.now().astimezone()
    code = error.exit_code if isinstance(error, DdpmError) else 1
    with suppress(StorageError):
        line = " | ".join(text.splitlines())
        stamp = f"{now:%Y-%m-%d %H:%M:%S},{now.microsecond // 1000:03d}"
        durable.append_line(run_dir / LOG, f"{stamp} ERROR exit code {code}: {line}")
        facts = {"reason": text, "exit_code": code, "ended": now.isoformat(timespec="seconds")}
        durable.write_json(run_dir / FAILED, facts)


def failure(run_dir: Path) -> dict[str, Any]:
    """What FAILED.json says; empty for a run that has not failed."""
    return durable.read_json(run_dir / FAILED)


def reason(error: BaseException) -> str:
    """An error in words: what the user is told, else its type, text and place in the code."""
    if isinstance(error, DdpmError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"
