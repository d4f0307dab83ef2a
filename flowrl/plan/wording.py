"""How the plan says numbers of things."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number and its noun, whose plural is made with an s unless it is given.

    Example: ``counted(1, "group") == "1 group"``
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
