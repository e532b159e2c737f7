"""The command `jacli merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jacli.cli.options import AsJson
from jacli.cli.streams import results_are_kept, say, show_json
from jacli.errors.printable import count_of, join_words, quote_path

if TYPE_CHECKING:
    from jacli.commands.merge import Merged


def merge(
    shards: Annotated[
        list[Path],
        typer.Argument(
            help="Every shard of a run; or the run's -o, for the shards beside it.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="The merged file [the -o of the run]."),
    ] = None,
    virtual: Annotated[
        bool,
        typer.Option(
            "--virtual/--copy",
            help="An index that leaves large datasets in the shards; or a file of its own.",
        ),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Example: jacli merge out.h5, for the shards out.00001-of-00016.h5 and so on.

    Shards of one run -> one file, once every shard is there, finished, and of the same run.  Exits
    with 6 where one is missing, and says what makes it.
    """
    from jacli.cli.progress import progress_reporter
    from jacli.commands.merge import merge as merge_shards

    command = join_words(["jacli", *sys.argv[1:]])
    with progress_reporter(quiet=False, every=30.0) as progress:
        merged = merge_shards(
            shards,
            out,
            virtual=virtual,
            overwrite=overwrite,
            command=command,
            progress=progress,
            waiting=lambda what: say(f"waiting: {what}"),
        )
    results_are_kept()
    for note in merged.notes:
        say(f"note: {note}")
    if as_json:
        show_json(merged.to_dict())
    else:
        _print(merged)


def _print(merged: Merged) -> None:
    shards = count_of(merged.shards, "shard")
    if merged.already_complete:
        say(f"{merged.out} is already complete: merged before from the same {shards}")
        return
    kind = "an index of" if merged.in_shards else "merged from"
    say(f"wrote {merged.out}: {count_of(merged.samples, 'sample')}, {kind} {shards}")
    if merged.in_shards:
        say(f"keep the shards: {', '.join(merged.in_shards)} stay in them")
    say(f"look at it: jacli summarize {quote_path(merged.out)}")
