"""Progress: a bar on a terminal, a plain line every so often in a log; always on stderr."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

from jacli.cli.status import duration
from jacli.cli.streams import Output, say, trusted

if TYPE_CHECKING:
    from rich.console import Console


_COMPUTING = "computing"
"""The stage that has a rate."""


class Reporter:
    """Called with (samples done, samples in all); `stage` says what the run is busy with.

    Rate and time left are those of the present stage.

    Args:
        draw: Called with the stage, the samples done and in all, and the samples per second.
    """

    def __init__(self, draw: Callable[[str, int, int, float], None]) -> None:
        self._draw = draw
        self._stage = _COMPUTING
        self._done = self._total = 0
        self._rate = _Rate()

    def __call__(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        # Elsewhere what is reported was done before, by an earlier process.
        self._draw(self._stage, done, total, self._rate.at(done) if self._stage == _COMPUTING else 0.0)

    def stage(self, name: str) -> None:
        """Another stage begins."""
        self._stage, self._rate = name, _Rate()
        self(self._done, self._total)


@contextmanager
def progress_reporter(*, quiet: bool, every: float) -> Iterator[Reporter]:
    """Displays a run's progress: a bar on a terminal, a line now and then elsewhere.

    Args:
        quiet: Say nothing.
        every: Seconds between lines where stderr is no terminal (rich's bar would write nothing
            into a redirected log until the end).
    """
    if quiet:
        yield Reporter(lambda stage, done, total, rate: None)
    elif sys.stderr.isatty():
        with _bar() as draw:
            yield Reporter(draw)
    else:
        yield Reporter(_lines(every))


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int, float], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    console = Console(file=trusted(sys.stderr))
    above = Output(_AboveBar(console))
    # rich's own redirection would hand on the escape sequences that a model prints.
    bar = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    with bar, redirect_stdout(above), redirect_stderr(above):
        task = bar.add_task(_COMPUTING, total=None, rate="")

        def draw(stage: str, done: int, total: int, rate: float) -> None:
            bar.update(
                task, description=stage, completed=done, total=total or None, rate=_pace(done, total, rate)
            )

        yield draw


def _pace(done: int, total: int, rate: float) -> str:
    """Samples per second and the time left; nothing before either is known."""
    if rate <= 0:
        return ""
    return f"{rate:.3g} samples/s, {duration((total - done) / rate)} left"


class _AboveBar(io.StringIO):
    """Lines that a model prints while the bar is drawn; they arrive escaped."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def write(self, text: str) -> int:
        from rich.text import Text

        self._console.print(Text(text.removesuffix("\n")), soft_wrap=True)
        return len(text)


def _lines(every: float) -> Callable[[str, int, int, float], None]:
    last = time.monotonic()

    def draw(stage: str, done: int, total: int, rate: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < every or rate <= 0:
            return
        last = now
        say(f"{done}/{total} samples, {_pace(done, total, rate)}")

    return draw


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
