"""The garbage collector, held back while a command imports what it needs.

The modules of torch are some 300,000 objects that live as long as the process.  The collector would look
through them again and again while they are made, and once more at exit, a fifth of the time of a small
run.  So it pauses meanwhile, and what was imported is frozen: exempt from every later collection
(https://docs.python.org/3/library/gc.html#gc.freeze).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_process_is_own = False


def own_process() -> None:
    """Say that this process runs one command and nothing else, so that only its own objects are frozen."""
    global _process_is_own
    _process_is_own = True


@contextmanager
def importing() -> Iterator[None]:
    """Around a command's imports.  Without effect in a process that is not jacli's own."""
    if not _process_is_own:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
