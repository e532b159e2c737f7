"""Progress of a run under way: to its caller, and in the small file beside ``OUT.part``."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from jacli.errors import JacliError
from jacli.errors.printable import count_of, split_words
from jacli.store import Progress, part_path, remove_progress, write_progress

ProgressCall = Callable[[int, int], None]
"""Called with samples done and samples in all."""

_EVERY = 0.5
"""Seconds between two writings of the file."""


class Report:
    """The progress of one run, from its beginning to its end.

    As a context manager: an exception is told in the file, and what was kept is noted on the exception
    (its ``__notes__``), for whoever tells the user.

    Args:
        out: The result file.
        command: As it was typed.
        shard: ``I/N``, or None.
        tell: Called with samples done and in all; its own errors (a terminal that is gone) end nothing.
        stage: Called with what the run is busy with, likewise.
    """

    def __init__(
        self, out: Path, *, command: str, shard: str | None, tell: ProgressCall, stage: Callable[[str], None]
    ) -> None:
        self._out = out
        self._samples = self._before = self._done = self._told = 0
        self._command = tuple(split_words(command)) if command.startswith("jacli ") else ()
        self._folder = ""
        with contextlib.suppress(OSError):  # it may have been removed
            self._folder = os.getcwd()
        self._shard = shard
        self._tell = tell
        self._stage = stage
        self._started = time.time()
        self._last = 0.0

    def found(self, samples: int, done: int) -> None:
        """There are so many samples, of which an earlier process has done some."""
        self._samples = samples
        self._before = self._done = self._told = done

    def begin(self, samples: int) -> None:
        """The work on so many samples begins."""
        self._samples, self._started = samples, time.time()
        self._tell_caller(self._before)
        self._write("running")

    def busy(self, stage: str) -> None:
        """Report the current stage of the run."""
        with contextlib.suppress(OSError):
            self._stage(stage)

    def computing(self) -> None:
        """The samples are computed from now on: only this time counts for their rate."""
        self._started = time.time()
        self.busy("computing")

    def written(self, written: int, committed: int) -> None:
        """So many samples are in the file, and so many of them for good."""
        self._done = committed
        if written != self._told:
            self._tell_caller(written)
        if time.monotonic() - self._last >= _EVERY:
            self._last = time.monotonic()
            self._write("running")

    def _tell_caller(self, done: int) -> None:
        self._told = done
        with contextlib.suppress(OSError):
            self._tell(done, self._samples)

    def _write(self, state: str, reason: str = "") -> None:
        progress = Progress(
            state=state,
            samples=self._samples,
            done=self._done,
            done_before=self._before,
            started=self._started,
            command=self._command,
            folder=self._folder,
            shard=self._shard,
            reason=reason,
        )
        write_progress(self._out, progress)

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        part = part_path(self._out)
        if not part.exists():
            remove_progress(self._out)
            return
        if self._samples == 0:
            return  # it was not looked at
        if isinstance(error, Exception):
            what = error.what if isinstance(error, JacliError) else f"{type(error).__name__}: {error}"
            self._write("failed", what)
        elif error is not None:
            self._write("stopped", "by a signal or from the keyboard")
        if error is not None:
            total = count_of(self._samples, "sample")
            error.add_note(f"{self._done} of {total} are finished and kept in {part}.")
