"""A thread that writes a batch while the next one is computed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from jacli.device.transfer import background_work
from jacli.store import ResultWriter, WriteCancelled

PATIENCE = 3.0
"""Seconds that a run which is stopped waits for the batch being written; then that is given up."""


@dataclass(frozen=True)
class WrittenBatch:
    """A batch for the file.

    Attributes:
        start: First sample.
        arrays: Name -> rows, as `ResultWriter.write_batch` takes them.
        inputs_sha256: Of the rows up to its last.
        attributes: Root attributes that changed with it.
    """

    start: int
    arrays: Mapping[str, Any]
    inputs_sha256: str
    attributes: Mapping[str, object] = field(default_factory=dict)


class Pipeline:
    """Writes batches in a thread of its own, one at a time; whoever brings the next one waits for it.

    So two batches are held at most, and a slow disk slows the computation instead of filling the memory.
    The thread commits as soon as that takes little of the time.  On CPUs it uses one of the cores: products
    of factors are multiplied out here.

    As a context manager: an exception ends it after the batch being written, which is given up if that
    takes longer than `PATIENCE`.

    Args:
        writer: The file; nobody else may use it until `finish`.
        device: Where the arrays come from.
        before_commit: Called in the thread before batches are made part of the file for good; may refuse.
        written: Called in the thread with the number of samples that are written, and of those that are in
            the file for good.
    """

    def __init__(
        self,
        writer: ResultWriter,
        device: torch.device,
        *,
        before_commit: Callable[[], None] = lambda: None,
        written: Callable[[int, int], None],
    ) -> None:
        self._writer = writer
        self._device = device
        self._before_commit = before_commit
        self._written = written
        self._condition = threading.Condition()
        self._batch: WrittenBatch | None = None
        self._error: BaseException | None = None
        self._ending = False
        self._over = False  # Thread.is_alive is wrong after a signal has left a join (Python 3.11 and 3.12)
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def put(self, batch: WrittenBatch, *, wait: bool = False) -> None:
        """Have a batch written, after the one before it; with ``wait``, return when it is.

        Raises:
            JacliError: As the writer did, of this batch or an earlier one.
        """
        with self._condition:
            self._wait()
            self._batch = batch
            self._condition.notify_all()
        del batch
        if wait:
            with self._condition:
                self._wait()

    def _wait(self) -> None:
        self._condition.wait_for(lambda: self._batch is None or self._over)
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait until everything is written; the writer is then free again.

        Raises:
            JacliError: As the writer did.
        """
        self._end()
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        with self._condition:
            self._ending = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._over)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error
        with self._condition:
            self._over, self._batch = True, None
            self._condition.notify_all()

    def _work(self) -> None:
        with background_work(self._device):
            while True:
                with self._condition:
                    self._condition.wait_for(
                        lambda: self._batch is not None or self._ending, self._writer.seconds_to_commit
                    )
                    batch, ending = self._batch, self._ending
                if batch is None:  # nothing came while a commit was waited for, or nothing will
                    self._commit()
                    if ending:
                        return
                    continue
                self._write(batch)
                del batch
                with self._condition:
                    self._batch = None
                    self._condition.notify_all()

    def _write(self, batch: WrittenBatch) -> None:
        writer = self._writer
        if batch.start != writer.written:
            raise RuntimeError(f"the batch of sample {batch.start} came after {writer.written} samples")
        writer.set_attributes(batch.attributes)
        writer.write_batch(
            batch.start,
            batch.arrays,
            inputs_sha256=batch.inputs_sha256,
            given_up=lambda: time.monotonic() > self._deadline,
        )
        if writer.seconds_to_commit == 0:
            self._commit()
        else:
            self._written(writer.written, writer.committed)

    def _commit(self) -> None:
        self._before_commit()
        self._writer.commit()
        self._written(self._writer.written, self._writer.committed)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline = time.monotonic() + PATIENCE
        self._end()
        if error is not None and self._error is not None and self._error is not error:
            if isinstance(self._error, WriteCancelled):
                return
            raise self._error from error
