"""Progress: a bar on a terminal, a plain line every so often in a log; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[int, int], None]


@contextmanager
def progress_reporter(*, quiet: bool, every: float) -> Iterator[Progress]:
    """A function to call with (samples done, samples in all).

    Args:
        quiet: Say nothing.
        every: Seconds between lines where stderr is no terminal (rich's bar would write nothing
            into a redirected log until the end).
    """
    if quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar() as update:
            yield update
    else:
        yield _lines(every)


@contextmanager
def _bar() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("computing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate="")

        def update(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.3g} samples/s")

        yield update


def _lines(every: float) -> Progress:
    started = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every:
            return
        last = now
        rate = done / (now - started)
        left = (total - done) / rate
        print(f"{done}/{total} samples, {rate:.3g} samples/s, {left:.0f} s left", file=sys.stderr, flush=True)

    return update
