"""Signals wait while HDF5 works: none may land inside of it.

Python runs signal handlers between two instructions of the main thread, also of those that HDF5 calls to
read and write (`jacli.durable.sink`).  An exception raised there leaves HDF5 halfway, in a state that nobody
has described.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import h5py

_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR2)


@contextmanager
def uninterrupted(*, forget: bool = False) -> Iterator[None]:
    """Hold back signals that stop a run; the first that came is delivered afterwards.

    In other threads than the main one, which no handler runs in, nothing is to be done.

    >>> with uninterrupted(forget=True):
    ...     signal.raise_signal(signal.SIGINT)
    ...     "the commit is whole"
    'the commit is whole'

    Args:
        forget: What came is not delivered, unless an exception ends the work: it came too late to stop it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    before: dict[signal.Signals, Any] = {}
    delivered = True
    try:
        for number in _SIGNALS:
            before[number] = signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
        delivered = not forget
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came and delivered:
            _deliver(*came[0], before)


def _deliver(number: int, frame: FrameType | None, handlers: dict[signal.Signals, Any]) -> None:
    handler = handlers[signal.Signals(number)]
    if callable(handler):
        handler(number, frame)
    elif handler != signal.SIG_IGN:
        os.kill(os.getpid(), number)


class UninterruptedDataset:
    """A dataset of an open file whose pieces are read without interruption.

    Args:
        dataset: Of a file that HDF5 reads through Python.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype = dataset.dtype
        self.chunks: tuple[int, ...] | None = dataset.chunks

    def __getitem__(self, piece: Any) -> Any:
        """As `h5py.Dataset` has it."""
        with uninterrupted():
            return self._dataset[piece]
