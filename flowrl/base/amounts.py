"""Amounts in words: bytes of files, disks and memory, and numbers of things."""

from __future__ import annotations

GB = 10**9
_UNITS = ((GB, "GB"), (10**6, "MB"), (10**3, "kB"))


def size(amount: float) -> str:
    """Bytes in the decimal units of disk vendors, to three digits or so.

    Example: ``size(9_980_000_000)`` is "9.98 GB"
    """
    for unit, name in _UNITS:
        if amount >= unit:
            value = amount / unit
            return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{amount:.0f} bytes"


def count(number: int, what: str, plural: str = "") -> str:
    """A number of things, such as "1 file" and "2,400 files"; the plural has an s unless it is given."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
