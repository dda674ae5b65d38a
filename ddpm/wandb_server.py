"""Whether Weights & Biases can be talked to: which server, and whether there is a key for it.

The key itself is only looked for, as wandb does: in the environment, then in .netrc. It is never
kept, shown or written. wandb is not imported, so that asking costs nothing.
"""

import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

# wandb 0.31 calls the public server by its new name and finds keys under either.
PUBLIC_SERVER = "https://api.forge.coreweave.com"
PROBE_S = 1.5
_PUBLIC_NAMES = ("api.forge.coreweave.com", "api.wandb.ai")


def address() -> str:
    """The address of the server that WANDB_BASE_URL names, else of the public one."""
    return os.environ.get("WANDB_BASE_URL") or PUBLIC_SERVER


def has_key() -> bool:
    """Whether wandb would find a key for the server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        place = urlsplit(address())
        names = {place.netloc, place.hostname or ""}
        if place.hostname in _PUBLIC_NAMES:
            names |= set(_PUBLIC_NAMES)
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        return not names.isdisjoint(netrc.netrc(path).hosts)
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return False  # no home, no file, or not to be understood


def why_not_online() -> str | None:
    """Why W&B cannot be used from here: no key, or no sensible answer in time; None if it can."""
    server = address()
    if not has_key():
        return "no API key (set WANDB_API_KEY or run `wandb login`)"
    answers: list[str | None] = []
    # In a thread of its own, because looking up a host name knows no time limit.
    thread = threading.Thread(target=lambda: answers.append(_probe(server)), daemon=True)
    thread.start()
    thread.join(PROBE_S + 0.2)
    return answers[0] if answers else f"{server} did not answer within {PROBE_S} s"


def _probe(server: str) -> str | None:
    """What is wrong with the server's answer to an empty question; None when nothing is."""
    request = urllib.request.Request(
        f"{server.rstrip('/')}/graphql",
        data=b'{"query": "{ __typename }"}',
        headers={"Content-Type": "application/json", "User-Agent": "ddpm"},
    )
    try:
        with urllib.request.urlopen(request, timeout=PROBE_S):
            return None
    except urllib.error.HTTPError as error:
        # 4xx: somebody is there, and does not know us yet
        return None if error.code < 500 else f"{server} answers {error.code} {error.reason}"
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
