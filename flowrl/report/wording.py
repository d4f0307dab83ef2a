"""Numbers as people read them."""

from __future__ import annotations

import math
import re

PLUS_MINUS = "\u00b1"
TIMES = "\u00d7"
MINUS = "\u2212"


def decimals_for(spread: float) -> int:
    """How many decimals show one digit of `spread`, two where it begins with 1: 0.034 needs 2 and 0.014 needs 3.

    2 where the spread is zero or unknown.
    """
    if not math.isfinite(spread) or spread <= 0:
        return 2
    power = math.floor(math.log10(spread))
    digits = 2 if spread < 2 * 10.0**power else 1
    return min(6, max(0, digits - 1 - power))


def fixed(value: float, decimals: int, *, signed: bool = False) -> str:
    """A number with that many decimals and a typographic minus; a rounded zero has no sign but the asked-for plus."""
    rounded = round(value, decimals) + 0.0
    return f"{rounded:{'+' if signed else ''}.{decimals}f}".replace("-", MINUS)


def significant(value: float, digits: int = 3) -> str:
    """A number to that many significant digits: 0, 0.0123, 12.3, 1,230, 2.1e-5."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4 or abs(value) >= 1e7:
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.{digits}g}").replace("e+", "e").replace("-", MINUS)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """0 s, 0.12 s, 7.9 s, 48 s, 6 min 20 s, 2 h 05 min."""
    if seconds == 0:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.{1 if seconds >= 1 else 2}f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def listed(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
