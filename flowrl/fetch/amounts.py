"""Sizes of files and disks in words."""

from __future__ import annotations

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def size(amount: int) -> str:
    """Bytes in the decimal units of disk vendors, to three digits or so.

    Example: ``size(9_980_000_000)`` is "9.98 GB"
    """
    for unit, name in _UNITS:
        if amount >= unit:
            value = amount / unit
            return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{amount} bytes"


def files(count: int) -> str:
    """A number of files, such as "1 file" and "24 files"."""
    return f"{count} file{'' if count == 1 else 's'}"
