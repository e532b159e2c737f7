"""The command `jacli status`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jacli.cli.options import AsJson
from jacli.cli.streams import show, show_json
from jacli.errors.printable import count_of

if TYPE_CHECKING:
    from jacli.commands.status import RunStatus
    from jacli.run.run_files import FileStatus
    from jacli.summary import Row

ROWS = 20
"""With more shards, those of one state that have nothing more to tell share a row."""


def status(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Results, finished or not; for a run in shards its -o, or the shards.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Example: jacli status out.h5.

    How far is a run: its state, samples done, rate, time left, and what to run next.  It reads the small
    files beside an unfinished result, never the result itself, and disturbs nobody.
    """
    from jacli.commands.status import status as status_of

    runs = status_of(files)
    if as_json:
        show_json([run.to_dict() for run in runs])
        return
    for number, run in enumerate(runs):
        if number:
            show()
        _print(run)


def _print(run: RunStatus) -> None:
    from jacli.cli.render import print_table
    from jacli.summary import Table

    columns = ("shard", "state", "done", "of", "samples/s", "left", "where")
    rows = list(_rows(run.files))
    if run.files[0].shard is None:
        columns, rows = ("file", *columns[1:]), [(str(run.out), *row[1:]) for row in rows]
    reasons = tuple(
        f"{file.shard or file.path.name} {file.state}: {file.reason}" for file in run.files if file.reason
    )
    if run.files[0].shard is not None:
        show(f"{run.out} in {count_of(run.files[0].shard.count, 'shard')}")
    print_table(Table(columns, tuple(rows), (*reasons, *run.notes)))
    show(_sums(run))
    for line in run.next:
        show(f"next: {line}")


def _rows(files: Sequence[FileStatus]) -> Iterator[Row]:
    """A row per file; of many files, those that are complete, missing or waiting together."""
    together: dict[str, list[FileStatus]] = {}
    single = []
    for file in files:
        if len(files) > ROWS and file.state in ("complete", "missing", "waiting"):
            together.setdefault(file.state, []).append(file)
        else:
            single.append(file)
    for state, alike in together.items():
        samples = [file.samples for file in alike if file.samples is not None]
        done = sum(file.done or 0 for file in alike) if samples else None
        yield (f"{len(alike)} of them", state, done, sum(samples) if samples else None, None, None, None)
    for file in single:
        rate = None if file.rate is None else f"{file.rate:.3g}"
        left = None if file.seconds_left is None else duration(file.seconds_left)
        yield (str(file.shard), file.state, file.done, file.samples, rate, left, file.where or None)


def _sums(run: RunStatus) -> str:
    samples = run.samples
    if samples is None:
        return "no sample is done yet"
    about = "" if run.samples_are_known else "about "
    done = f"{'about ' * run.estimated}{run.done}"
    parts = [f"{done} of {about}{samples} samples are done"]
    if run.rate is not None and run.seconds_left is not None:
        parts += [f"{run.rate:.3g} samples/s", f"{duration(run.seconds_left)} left"]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """For the eye: ``59 s``, ``3:07:00``, ``2 d 03:07``.

    >>> duration(59), duration(11_220), duration(184_020)
    ('59 s', '3:07:00', '2 d 03:07')
    """
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    hours, minutes = divmod(rounded // 60, 60)
    if hours < 24:
        return f"{hours}:{minutes:02d}:{rounded % 60:02d}"
    return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
