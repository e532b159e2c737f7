"""The command `jacli summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jacli.cli.collector import importing
from jacli.cli.render import TableFormat, print_notes, print_table, render_table
from jacli.cli.usage import parse_all
from jacli.errors import JacliError, UsageError
from jacli.options.values import one_of, whole

BY_SUFFIX = {
    ".csv": TableFormat.CSV,
    ".json": TableFormat.JSON,
    ".jsonl": TableFormat.JSONL,
    ".md": TableFormat.MARKDOWN,
}


def summarize(
    files: Annotated[
        list[Path],
        typer.Argument(help="Result files, or any HDF5 files (see --dataset).", show_default=False),
    ],
    per_sample: Annotated[bool, typer.Option("--per-sample", help="One row per sample.")] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="One row per class: the norm of its input-gradient.")
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="correct|label",
            help="Groups of samples, with stored --labels: right and wrong ones, or one group a label.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="The Jacobian (batch, *input, *output) in a file that jacli did not write."),
    ] = None,
    output_axes: Annotated[
        str | None,
        typer.Option(metavar="N", help="How many of the last axes of --dataset are outputs [1]."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Sort by this column; -COLUMN from large to small.")
    ] = None,
    limit: Annotated[str | None, typer.Option(metavar="N", help="Print this many rows of each file.")] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="table, csv, json, jsonl or markdown [by the suffix of --out, else table].",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the table here, not to stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Example: jacli summarize out.h5 --per-sample --sort -spectral_norm --limit 10.

    Tables of norms, ranks and condition of the Jacobians in FILES: over each file, per sample, per
    class, or by labels.
    """
    with importing():
        from jacli.commands.summarize import summarize as summarize_files
        from jacli.commands.table_file import check_table_place, write_table

    parsed = _parsed(
        out, limit=limit, output_axes=output_axes, format=format, dataset=dataset, overwrite=overwrite
    )
    if out is not None:
        check_table_place(out, files, overwrite=overwrite)
    table = summarize_files(
        files,
        per_sample=per_sample,
        per_class=per_class,
        by=by,
        dataset=dataset,
        output_axes=parsed["output_axes"] or 1,
        sort=sort,
        limit=parsed["limit"],
    )
    if out is None:
        print_table(table, parsed["format"] or TableFormat.TABLE)
        return
    text = render_table(table, parsed["format"] or BY_SUFFIX.get(out.suffix.lower(), TableFormat.TABLE))
    write_table(out, text, overwrite=overwrite)
    print_notes(table)


def _parsed(
    out: Path | None, *, overwrite: bool, dataset: str | None, **values: str | None
) -> dict[str, Any]:
    """The options that are not texts; all that are wrong are reported at once."""
    problems: list[JacliError] = []
    if overwrite and out is None:
        problems.append(
            UsageError("--overwrite goes with --out FILE.", why="Nothing is written.", hint="Add --out.")
        )
    if values["output_axes"] is not None and dataset is None:
        problems.append(
            UsageError(
                "--output-axes goes with --dataset.",
                why="A result file of jacli records which axes are outputs.",
                hint="Leave it out, or name the dataset.",
            )
        )
    parsers = {"limit": whole(1), "output_axes": whole(1), "format": one_of(*TableFormat)}
    parsed = parse_all(
        "summarize", {name: (values[name], parse) for name, parse in parsers.items()}, problems
    )
    return parsed | {"format": parsed["format"] and TableFormat(parsed["format"])}
