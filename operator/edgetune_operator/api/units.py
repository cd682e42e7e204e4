"""Formatted figures: shares as percent or points, bytes in powers of ten."""


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
