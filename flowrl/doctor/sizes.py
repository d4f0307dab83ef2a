"""Sizes of memory and disks in words."""

from __future__ import annotations

GB = 10**9
_MB = 10**6


def size(amount: int) -> str:
    """Bytes in decimal GB or MB, as vendors and `flowrl plan` count them.

    Example: ``size(85_520_000_000)`` is "85.5 GB"
    """
    if amount >= 100 * GB:
        return f"{amount / GB:,.0f} GB"
    return f"{amount / GB:.1f} GB" if amount >= GB else f"{amount / _MB:.0f} MB"
