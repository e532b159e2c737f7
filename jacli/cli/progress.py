"""Progress: a bar on a terminal, a plain line every so often in a log; always on stderr."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from jacli.cli.streams import Output, say, trusted

if TYPE_CHECKING:
    from rich.console import Console

    from jacli.run.report import ProgressCall


@contextmanager
def progress_reporter(*, quiet: bool, every: float) -> Iterator[ProgressCall]:
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
def _bar() -> Iterator[ProgressCall]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("computing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    rate = _Rate()
    console = Console(file=trusted(sys.stderr))
    above = Output(_AboveBar(console))
    # rich's own redirection would hand on the escape sequences that a model prints.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar, redirect_stdout(above), redirect_stderr(above):
        task = bar.add_task("", total=None, rate="")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{rate.at(done):.3g} samples/s")

        yield update


class _AboveBar(io.StringIO):
    """Lines that a model prints while the bar is drawn; they arrive escaped."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        from rich.text import Text

        self._console.print(Text(text.removesuffix("\n")), soft_wrap=True)
        return len(text)


def _lines(every: float) -> ProgressCall:
    last, rate = time.monotonic(), _Rate()

    def update(done: int, total: int) -> None:
        nonlocal last
        now, per_second = time.monotonic(), rate.at(done)
        if now - last < every or per_second == 0:
            return
        last = now
        left = (total - done) / per_second
        line = f"{done}/{total} samples, {per_second:.3g} samples/s, {left:.0f} s left"
        say(line)

    return update


class _Rate:
    """Samples a second since the first report, which tells what was done before."""

    def __init__(self) -> None:
        self._first: int | None = None
        self._began = 0.0

    def at(self, done: int) -> float:
        """Now, with so many samples done; 0 at the first report."""
        if self._first is None:
            self._first, self._began = done, time.monotonic()
        return (done - self._first) / max(time.monotonic() - self._began, 1e-9)
