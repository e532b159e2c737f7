"""The plan that a result file records, each of its values of the right type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jacli.plans.factorization import Factorization
from jacli.plans.plan import Measured
from jacli.store.attributes import Attributes


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_reasons(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_measured(value: Any) -> bool:
    tried = [Measured.from_dict(entry) for entry in value] if isinstance(value, list) else None
    return tried is not None and all(
        _is_text(one.method)
        and _is_count(one.batch_size)
        and _is_count(one.chunk_size)
        and all(map(_is_number, (one.setup_seconds, one.vector_seconds, one.bytes_held)))
        and isinstance(one.failure, str | None)
        for one in tried
    )


def _is_factored(value: Any) -> bool:
    plan = Factorization.from_dict(value)
    return all(
        _is_text(link.reverse_method)
        and _is_text(link.forward_method)
        and _is_count(link.reverse_chunk)
        and _is_count(link.forward_chunk)
        for link in plan.links
    )


_NEEDED: dict[str, Callable[[Any], bool]] = {
    "method": _is_text,
    "batch_size": _is_count,
    "chunk_size": _is_count,
}
_KNOWN: dict[str, Callable[[Any], bool]] = {
    "why": _is_text,
    "seconds": _is_number,
    "row_check_error": _is_number,
    "passed_over": _is_reasons,
    "notes": _are_texts,
    "measured": _are_measured,
    "factored": _is_factored,
}
"""May be left out, or None."""


def recorded_plan(attributes: Attributes) -> dict[str, Any]:
    """The attribute ``plan`` of a result.

    Raises:
        ResultsError: It is not there, is no JSON, or one of its values is of another type.
    """
    plan = attributes.json_object("plan")
    try:
        check_plan(plan)
    except ValueError as error:
        raise attributes.damaged("plan", str(error)) from error
    return plan


def check_plan(plan: Mapping[str, Any]) -> None:
    """Check each value of a plan as read from JSON.

    >>> check_plan({"method": "loop", "batch_size": "many"})
    Traceback (most recent call last):
        ...
    ValueError: its batch_size cannot be 'many'

    Raises:
        ValueError: One is of another type.
    """
    for name, is_sound in (_NEEDED | _KNOWN).items():
        value = plan.get(name)
        if value is None and name in _KNOWN:
            continue
        try:
            sound = is_sound(value)
        except (KeyError, TypeError, ValueError, RecursionError):
            sound = False
        if not sound:
            raise ValueError(f"its {name} cannot be {value!r:.60}")
