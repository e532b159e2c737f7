"""JSON from files that nobody vouches for: a lock, a run's progress, the attributes of a result."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 50
"""Lists and objects inside one another; what jacli writes has five."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    >>> parse_json('{"shards": [1, 2]}')
    {'shards': [1, 2]}
    >>> parse_json("[" * 10_000 + "]" * 10_000)
    Traceback (most recent call last):
        ...
    ValueError: it is nested too deeply

    Raises:
        ValueError: It is none, or nested so deeply that whoever walks through it runs out of stack.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [part for whole in level for part in _parts(whole)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} times")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
