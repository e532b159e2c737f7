"""Numbers as text: sizes for people, and numbers that JSON does not have."""

from __future__ import annotations

import math
from typing import Any


def format_size(count: int) -> str:
    """Bytes in the largest unit in which there is at least one.

    >>> format_size(1000), format_size(3 * 2**29)
    ('1000 B', '1.5 GiB')
    """
    number, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        units.pop(0)
    return f"{number:.1f} {units[0]}" if units[0] != "B" else f"{count} B"


def json_ready(value: Any) -> Any:
    """A value, and all inside it, with text in place of numbers that are not finite: JSON has none of these.

    >>> json_ready({"error": float("inf"), "values": (1.0, float("nan"))})
    {'error': 'Infinity', 'values': [1.0, 'NaN']}
    """
    if isinstance(value, dict):
        return {name: json_ready(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
