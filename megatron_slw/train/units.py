"""Numbers as a person reads them: few digits, a unit, a width that hardly changes."""

from __future__ import annotations

import math

_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"))


def count_text(count: float) -> str:
    """Return a count, such as tokens, with three or more significant digits: 812, 51,200, 1.02 M, 157.29
    B."""
    for size, unit in _COUNT_UNITS:
        if count >= 0.9999995 * size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f}"


def rate_text(per_second: float) -> str:
    """Return a rate without its unit: 87, 5.1k, 31k, 1.2M; a dash where it is not known (not finite)."""
    if not math.isfinite(per_second):
        return "-"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if per_second >= 0.9995 * size:
            scaled = per_second / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{per_second:.0f}"


def duration_text(seconds: float) -> str:
    """Return a duration: 0:07, 1:02, 14:54:00, 3 d 2 h; a dash where it is not known (not finite)."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    if whole < 2 * 86400:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return f"{whole // 86400} d {whole // 3600 % 24} h"
