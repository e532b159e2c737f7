"""Contracts that a single test walks, clause by clause."""

from __future__ import annotations

import traceback
from collections.abc import Callable


def broken(clause: Callable[..., None], *arguments: object) -> str:
    """Why a clause does not hold, an exception included; empty if it does."""
    try:
        clause(*arguments)
    except Exception as failure:
        trace = "".join(traceback.format_tb(failure.__traceback__)[-3:])
        return f"{clause.__name__}{arguments}: {type(failure).__name__}: {failure}\n{trace}"
    return ""
