"""The command `jacli summarize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jacli.cli.render import TableFormat, print_notes, print_table, render_table
from jacli.errors import UsageError

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
    per_sample: Annotated[bool, typer.Option("--per-sample", help="One row a sample.")] = False,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="One row a class: the norm of its input-gradient.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(help="The Jacobian (batch, *input, *output) in a file that jacli did not write."),
    ] = None,
    output_axes: Annotated[
        int | None, typer.Option(min=1, help="How many of the last axes of --dataset are outputs [1].")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Sort by this column; -COLUMN from large to small.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Print this many rows.")] = None,
    format: Annotated[
        TableFormat | None,
        typer.Option(help="Default: by the suffix of --out, else table.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the table here, not to stdout.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE if it exists.")] = False,
) -> None:
    """Example: jacli summarize out.h5 --per-sample --sort -spectral_norm --limit 10.

    Tables of norms, ranks and condition of the Jacobians in FILES: over each file, per sample, per class.
    """
    from jacli.run.summarize import summarize as summarize_files
    from jacli.run.table_file import check_table_place, write_table

    if overwrite and out is None:
        raise UsageError("--overwrite goes with --out FILE.", why="Nothing is written.", todo="Add --out.")
    if output_axes is not None and dataset is None:
        raise UsageError(
            "--output-axes goes with --dataset.",
            why="A result file of jacli says itself which axes are outputs.",
            todo="Leave it out, or name the dataset.",
        )
    if out is not None:
        check_table_place(out, files, overwrite=overwrite)
    table = summarize_files(
        files,
        per_sample=per_sample,
        per_class=per_class,
        dataset=dataset,
        output_axes=output_axes or 1,
        sort=sort,
        limit=limit,
    )
    if out is None:
        print_table(table, format or TableFormat.TABLE)
        return
    text = render_table(table, format or BY_SUFFIX.get(out.suffix.lower(), TableFormat.TABLE))
    write_table(out, text, overwrite=overwrite)
    print_notes(table)
