"""The errors that a person can act on: their message is all that needs to be shown."""

from __future__ import annotations


class UserError(Exception):
    """Something is wrong with what was asked for or given; the message says what, where, and what to do."""


class CheckpointError(UserError, ValueError):
    """Files of a model that cannot be used; the message names the file, what was found and what to do."""
