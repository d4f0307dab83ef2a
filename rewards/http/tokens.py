"""The secret that the client and the server of a reward share; no message of an error holds it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from flowrl.base.errors import UserError


class TokenError(UserError):
    """A token that cannot be read, or is none."""


def read_token(file: Path | str) -> str:
    """The token in a file; raises TokenError when it cannot be read or holds anything but one word of ASCII."""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"the token file {file} cannot be read: {error}") from None
    return _word(text, f"the token file {file}")


def token_of_environment(name: str) -> str:
    """The token in an environment variable; raises TokenError when it is not set or holds anything but one word."""
    return _word(os.environ.get(name, ""), f"the environment variable {name}")


def read_or_make_token(file: Path) -> str:
    """The token in a file, which is made with a new one, for its owner alone to read, when it is not there."""
    try:
        with open(file, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as new:
            new.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        pass  # its token is the one to use
    except OSError as error:
        raise TokenError(f"the token file {file} cannot be made: {error}") from None
    return read_token(file)


def _word(text: str, source: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise TokenError(f"{source} must hold a token, one word of ASCII; copy that of the server")
    return token
