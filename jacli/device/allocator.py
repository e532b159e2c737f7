"""Thresholds of the host's allocator (``mallopt``), raised during a run so that freed memory is reused.

The GNU C library returns a large piece of memory to the system as soon as it is freed.  The system then has
to zero and map every page of the next piece: a fifth of the time of a linear program where the vectors take
megabytes (`benchmarks/NOTES.md`).  With higher thresholds the process writes to the same pages again.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in ``malloc.h``."""

_MAX_KEPT_BYTES = 512 * 2**20
"""Freed memory at the end of the heap that the process may keep."""

_MAX_AUTOMATIC_THRESHOLD_BYTES = 32 * 2**20
"""The library itself raises its thresholds to the size of a piece that is freed, up to this size."""


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory inside the ``with`` block; does nothing with other C libraries than GNU's.

    Afterwards the thresholds are those that the library itself comes to once large pieces have been freed.
    The memory kept until then stays with the process until it frees memory again, or `give_back` is called.

    >>> import torch
    >>> with reused_memory():
    ...     tuple(torch.ones(2**20).shape)  # its memory stays with the process
    (1048576,)
    """
    library = _gnu_library()
    if library is None:
        yield
        return
    # Older versions accept no more than the threshold that they set themselves.
    library.mallopt(_MMAP_THRESHOLD, 2**30) or library.mallopt(
        _MMAP_THRESHOLD, _MAX_AUTOMATIC_THRESHOLD_BYTES
    )
    library.mallopt(_TRIM_THRESHOLD, _MAX_KEPT_BYTES)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _MAX_AUTOMATIC_THRESHOLD_BYTES)
        library.mallopt(_TRIM_THRESHOLD, 2 * _MAX_AUTOMATIC_THRESHOLD_BYTES)


def give_back() -> None:
    """Return freed memory to the system now, so that it does not count as held by the process."""
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
