"""Formatted figures: shares as percent or points, bytes in powers of ten."""

from collections.abc import Mapping


def format_share(share: float | None) -> str:
    """A share from 0 to 1 in percent; empty if unknown."""
    return "" if share is None else f"{share:.1%}"


def format_points(difference: float) -> str:
    """A difference of two shares from 0 to 1 in percentage points, with its sign."""
    return f"{100 * difference:+.1f} points"


def format_bytes(count: int | None) -> str:
    """Bytes in powers of ten; empty if unknown."""
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if round(value) < 1000:
            digits = 0 if unit == "B" or round(value, 1) >= 100 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def format_hours(seconds: float) -> str:
    """Seconds in hours."""
    return f"{seconds / 3600:.2f} h"


def format_cost(cost: Mapping[str, float]) -> str:
    """Amounts by currency; empty if there are none."""
    return " + ".join(f"{amount:.2f} {currency}" for currency, amount in cost.items())


def format_duration(seconds: float) -> str:
    """Seconds in at most two units: "15.9 s", "2 min 5 s", "1 h 3 min", "2 d 4 h"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 59.95 else "1 min"
    whole = round(seconds)
    for size, unit, smaller, part in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size:,} {unit}" + (f" {rest} {part}" if rest else "")
    return "1 min"
