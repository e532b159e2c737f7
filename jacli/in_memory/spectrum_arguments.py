"""How many singular values a call asks for, and how accurately."""

from __future__ import annotations

import numpy as np

from jacli.errors import UsageError


def check_count(k: object) -> int | None:
    """Number of singular values; None for all.

    >>> check_count(3), check_count(None)
    (3, None)
    >>> check_count(0)
    Traceback (most recent call last):
        ...
    jacli.errors.UsageError: k=0 is wrong.
    It must be a whole number of at least 1.
    Leave it out for all singular values.

    Raises:
        UsageError: It is no whole number of at least 1.
    """
    if k is None:
        return None
    if isinstance(k, (bool, np.bool_)) or not isinstance(k, (int, np.integer)) or k < 1:
        raise UsageError(
            f"k={k!r} is wrong.",
            why="It must be a whole number of at least 1.",
            hint="Leave it out for all singular values.",
        )
    return int(k)


def check_some(k: object) -> int:
    """Number of singular triples.

    Raises:
        UsageError: It is no whole number of at least 1.
    """
    count = check_count(k)
    if count is None:
        raise UsageError("k is missing.", why="The leading triples are computed.", hint="Say how many: k=5.")
    return count


def check_accuracy(rtol: object, certify: object) -> None:
    """Check the accuracy asked of values that come without the matrix.

    Raises:
        UsageError: ``rtol`` or ``certify`` is no number between 0 and 1.
    """
    for name, value in (("rtol", rtol), ("certify", certify)):
        if value is None and name == "certify":
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 < value < 1:  # type: ignore[operator]
            raise UsageError(f"{name}={value!r} is wrong.", why="It must be a number between 0 and 1.")
