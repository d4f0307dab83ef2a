"""What went wrong with a download, in words that say what to do."""

from __future__ import annotations

import errno
from urllib.parse import urlsplit

from httpx2 import HTTPError
from huggingface_hub import constants, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from flowrl.base.amounts import count, size
from flowrl.fetch.published import FetchError
from flowrl.fetch.sources import TOKEN, Gate, Part

FULL = (errno.ENOSPC, errno.EDQUOT)
_FROM = "--from FOLDER takes it from a copy"
_AGAIN = "start the same command again"


def kept() -> str:
    """What an end in the middle leaves, from which the same command goes on; the library writes in pieces."""
    return f"whole files are kept, and of a download that broke off every full {size(constants.DOWNLOAD_CHUNK_SIZE)}"


def explain(error: OSError | HTTPError, part: Part, url: str) -> FetchError:
    """The error that a person sees in place of a library's, met while `url` was asked for files of a part."""
    if isinstance(error, HfHubHTTPError):
        return _answer(error, part, url)
    host = urlsplit(url).netloc
    if isinstance(error, HTTPError):
        return FetchError(f"{part.label}: no answer from {host} ({_reason(error)})", advice=_no_answer())
    return FetchError(f"{part.label}: {host}: {error}")


def broken_off(error: HTTPError, label: str, url: str, *, tries: int, here: int) -> FetchError:
    """The error of a file whose connection broke once more than it is taken up; `here` are the bytes that are kept."""
    return FetchError(
        f"{label}: did not come whole from {urlsplit(url).netloc}, asked {count(tries, 'time')} ({_reason(error)}); "
        f"{size(here) if here else 'nothing'} of it is kept",
        advice=_no_answer(),
    )


def _reason(error: HTTPError) -> str:
    return str(error) or type(error).__name__


def _no_answer() -> str:
    return (
        "check the connection and, behind a proxy, HTTPS_PROXY\n"
        f"{_AGAIN}: {kept()}\n"
        f"on a machine without a network {_FROM}, and --from URL from a mirror"
    )


def _answer(error: HfHubHTTPError, part: Part, url: str) -> FetchError:
    status = error.response.status_code
    is_gated = isinstance(error, GatedRepoError) or (part.gate is not None and status in (401, 403))
    if is_gated:
        return _gated(status, part)
    if part.site == "hub" and status == 401 and not isinstance(error, RepositoryNotFoundError):
        return FetchError(f"{part.label}: the token is refused (401)", advice=_TOKEN_ADVICE)
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403, 404):
        return FetchError(
            f"{part.label}: not found ({status}) at {url}; it may have been moved, removed or made private, or the "
            f"mirror has no copy of it; {_FROM}"
        )
    if status == 429:
        advice = "wait some minutes" if get_token() else "log in with `hf auth login`, which allows more, or wait"
        return FetchError(f"{part.label}: too many requests (429); {advice}, then {_AGAIN}")
    return FetchError(f"{part.label}: the server answered {status} for {url}", advice=f"{_AGAIN} later: {kept()}")


def _gated(status: int, part: Part) -> FetchError:
    gate = part.gate or Gate(page=f"https://{part.label}", licence="its licence")
    if get_token() is None:
        return FetchError(
            f"{part.label}: gated ({status}), and you are not logged in",
            advice=f"1. {gate.accepting}\n2. {TOKEN}\n3. {_AGAIN}",
        )
    return FetchError(
        f"{part.label}: gated ({status}), and your token does not open it",
        advice=f"1. {gate.accepting} with the account of the token\n"
        "2. let the token, where it is a fine-grained one, read gated repositories\n"
        f"3. {_TOKEN_ADVICE}\n"
        f"4. {_AGAIN}",
    )


_TOKEN_ADVICE = "unset or renew HF_TOKEN where it is old, as it comes before what `hf auth login` saved"


def no_space(place: str) -> FetchError:
    """The disk filled up, for which the estimate was too low or another program too fast."""
    return FetchError(f"{place}: no space is left on the disk", advice=f"make room and {_AGAIN}: {kept()}")
