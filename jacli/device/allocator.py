"""Freed memory that the process keeps for the next tensor, for the time of a run.

The GNU C library gives large blocks back to the system as soon as they are freed, and every page of the next
one is then zeroed and mapped anew: on networks whose vectors take megabytes that is a fifth of a program's
time (`benchmarks/NOTES.md`).  Kept, the same pages are written again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in ``malloc.h``."""

_KEPT = 512 * 2**20
"""Bytes at the end of the heap that may stay with the process."""

_LARGEST_BY_ITSELF = 32 * 2**20
"""Up to blocks of this size the library raises the thresholds by itself, when such a block is freed."""


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory inside; where the C library is another one, nothing changes.

    Afterwards the thresholds are what they become by themselves where large blocks have been freed; what
    was kept stays for the next call, and goes back to the system as memory is freed again.
    """
    library = _gnu_library()
    if library is None:
        yield
        return
    # Older versions take no more than they come to by themselves.
    library.mallopt(_MMAP_THRESHOLD, 2**30) or library.mallopt(_MMAP_THRESHOLD, _LARGEST_BY_ITSELF)
    library.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _LARGEST_BY_ITSELF)
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BY_ITSELF)


def give_back() -> None:
    """Return what is free to the system now: before it is looked at how much is held."""
    library = _gnu_library()
    if library is not None:
        library.malloc_trim(0)


@cache
def _gnu_library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - an attribute that only it has
    except (OSError, AttributeError, TypeError):
        return None
    return library
