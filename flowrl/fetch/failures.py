"""What went wrong with a download, in words that say what to do."""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

from httpx2 import HTTPError
from huggingface_hub import get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from flowrl.fetch.published import FetchError
from flowrl.fetch.sources import TOKEN, Gate, Part

FULL = (errno.ENOSPC, errno.EDQUOT)
_FROM = "--from FOLDER takes it from a copy"
_NO_ANSWER = (
    "check the connection and, behind a proxy, HTTPS_PROXY; start the same command again, what has arrived is kept. "
    f"On a machine without a network {_FROM}, and --from URL from a mirror"
)


def explain(error: OSError | HTTPError, part: Part, url: str) -> FetchError:
    """The error that a person sees in place of a library's, met while `url` was asked for files of a part."""
    if isinstance(error, HfHubHTTPError):
        return FetchError(f"{part.label}: {_answer(error, part, url)}")
    host = urlsplit(url).netloc
    if isinstance(error, HTTPError):
        reason = str(error) or type(error).__name__
        return FetchError(f"{part.label}: no answer from {host} ({reason})", advice=_NO_ANSWER)
    return FetchError(f"{part.label}: {host}: {error}")


def _answer(error: HfHubHTTPError, part: Part, url: str) -> str:
    status = error.response.status_code
    is_gated = isinstance(error, GatedRepoError) or (part.gate is not None and status in (401, 403))
    if is_gated:
        return _gated(status, part)
    if part.site == "hub" and status == 401 and not isinstance(error, RepositoryNotFoundError):
        return f"the token is refused (401); {_token_advice()}"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return (
            f"not found ({status}) at {url}; it may have been moved, removed or made private, or the mirror has no "
            f"copy of it; {_FROM}"
        )
    if status == 429:
        advice = "wait some minutes" if get_token() else "log in with `hf auth login`, which allows more, or wait"
        return f"too many requests (429); {advice}, then start the same command again"
    return f"the server answered {status} for {url}; start the same command again later, what has arrived is kept"


def _gated(status: int, part: Part) -> str:
    gate = part.gate or Gate(page=f"https://{part.label}", licence="its licence")
    if get_token() is None:
        return (
            f"gated ({status}), and you are not logged in: {gate.accepting}; {TOKEN}; then start the same command again"
        )
    return (
        f"gated ({status}), and your token does not open it: {gate.accepting} with the account of the token; a "
        f"fine-grained token also needs the permission to read gated repositories; {_token_advice()}"
    )


def _token_advice() -> str:
    return "HF_TOKEN comes before what `hf auth login` saved, so unset or renew it where it is old"


def no_space(place: str) -> FetchError:
    """The disk filled up, for which the estimate was too low or another program too fast."""
    return FetchError(
        f"{place}: no space is left on the disk; make room and start the same command again, what has arrived is kept"
    )
