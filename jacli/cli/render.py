"""Tables as text: for the eye, or for programs.

For the eye (``table``, ``markdown``) numbers have five significant digits.  For programs (``csv``,
``json``, ``jsonl``) every digit, so that reading them back gives the same float64.  What is not a number in
them: unknown is an empty field or ``null``; NaN and infinities are ``nan``, ``inf``, ``-inf`` in CSV and
the strings ``"NaN"``, ``"Infinity"``, ``"-Infinity"`` in JSON, which has no such numbers (and ``null`` would
make them unknown); `float` reads all of these.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from jacli.cli.streams import say, trusted
from jacli.errors.numbers import json_ready
from jacli.errors.printable import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    # rich is imported where it is used: it is a third of the time `jacli --help` takes
    from rich.console import Console
    from rich.table import Table as RichTable

    from jacli.summary import Cell, Table


_GAP = 2
"""Characters between two columns."""

_NARROWEST = 20
"""Characters that columns get beside those that name a row, however narrow the terminal is."""


class TableFormat(StrEnum):
    """Format of a table."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    MARKDOWN = "markdown"


def render_table(table: Table, format: TableFormat = TableFormat.TABLE) -> str:
    """The table as text that ends in a newline; without its notes, without colour.

    >>> from jacli.summary import Table
    >>> table = Table(("metric", "mean"), (("frobenius_norm", 1.5),))
    >>> print(render_table(table, TableFormat.CSV), end="")
    metric,mean
    frobenius_norm,1.5
    """
    if format is TableFormat.CSV:
        return _csv(table)
    if format is TableFormat.JSON:
        lines = ",\n".join(f"  {_json_row(table, row)}" for row in table.rows)
        return f"[\n{lines}\n]\n" if lines else "[]\n"
    if format is TableFormat.JSONL:
        return "".join(f"{_json_row(table, row)}\n" for row in table.rows)
    if format is TableFormat.MARKDOWN:
        return _markdown(table)
    rich_table, buffer = _rich_table(table), io.StringIO()
    _console(rich_table, file=buffer, color_system=None, force_terminal=False).print(rich_table)
    return "".join(f"{line.rstrip()}\n" for line in buffer.getvalue().splitlines() if line.strip())


def print_table(table: Table, format: TableFormat = TableFormat.TABLE) -> None:
    """The table to stdout, its notes to stderr.

    On a terminal it has colour, and where it is too wide it is folded: the columns that do not fit stand
    below, in tables of their own, beside the first ones, which say what each row is about.

    >>> from jacli.summary import Table
    >>> print_table(Table(("class", "mean"), ((0, 1.5),)), TableFormat.CSV)
    class,mean
    0,1.5
    """
    if format is TableFormat.TABLE and sys.stdout.isatty():
        _print_folded(table)
    elif format in (TableFormat.JSON, TableFormat.JSONL):
        trusted(sys.stdout).write(render_table(table, format))
    else:
        sys.stdout.write(render_table(table, format))
    print_notes(table)


def print_notes(table: Table) -> None:
    """The table's notes to stderr, a line each."""
    for note in table.notes:
        say(f"note: {note}")


def format_cell(cell: Cell) -> str:
    """A cell for the eye: five significant digits, ``-`` where nothing is known.

    >>> format_cell(3.14159265), format_cell(None), format_cell("loop")
    ('3.1416', '-', 'loop')
    """
    if cell is None:
        return "-"
    return f"{cell:.5g}" if isinstance(cell, float) else escape(str(cell))


def _rich_table(
    table: Table, columns: Sequence[int] | None = None, text_width: int | None = None
) -> RichTable:
    """The table for rich.

    Args:
        table: Rows and columns.
        columns: Which of its columns; all if None.
        text_width: Columns of text are wrapped to this width; never if None.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    chosen = range(len(table.columns)) if columns is None else columns
    rich_table = RichTable(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for at in chosen:
        is_text = _is_text(table, at)
        wrap = is_text and at >= table.keys
        rich_table.add_column(
            Text(table.columns[at]),
            justify="left" if is_text else "right",
            no_wrap=not wrap or text_width is None,
            max_width=text_width if wrap else None,
            overflow="fold",
        )
    for row in table.rows:
        rich_table.add_row(*(Text(format_cell(row[at])) for at in chosen))
    return rich_table


def _is_text(table: Table, at: int) -> bool:
    return any(isinstance(row[at], str) for row in table.rows)


def _print_folded(table: Table) -> None:
    """The table on a terminal, in as many parts as it takes."""
    from rich.console import Console

    terminal = Console(file=trusted(sys.stdout))
    for columns, text_width in folded(table, terminal.width):
        rich_table = _rich_table(table, columns, text_width)
        _console(rich_table, file=trusted(sys.stdout)).print(rich_table)


def folded(table: Table, width: int) -> list[tuple[list[int], int | None]]:
    """Which columns stand together so that no line is longer than a terminal.

    >>> from jacli.summary import Table
    >>> table = Table(("metric", "a long name", "another long name"), (("norm", 1.0, 2.0),))
    >>> [columns for columns, _ in folded(table, width=30)]
    [[0, 1], [0, 2]]

    Args:
        table: Its first ``keys`` columns stand in every part.
        width: Of the terminal, in characters.

    Returns:
        Of each part, the positions of its columns, and the width to wrap its text to; None where it need
        not be wrapped.  A column that is too wide even alone has a part of its own.
    """
    from rich.cells import cell_len

    widths = [
        _GAP + max(map(cell_len, (name, *(format_cell(row[at]) for row in table.rows))))
        for at, name in enumerate(table.columns)
    ]
    keys = list(range(table.keys))
    room = max(_NARROWEST, width - sum(widths[: table.keys]))
    parts: list[tuple[list[int], int | None]] = []
    used = room + 1
    for at in range(table.keys, len(widths)):
        if used + widths[at] > room:
            parts.append((list(keys), None))
            used = 0
        parts[-1][0].append(at)
        used += widths[at]
        if widths[at] > room:
            parts[-1] = (parts[-1][0], room - _GAP)
    return parts or [(keys, None)]


def _console(rich_table: RichTable, **options: Any) -> Console:
    """A console as wide as the table: a narrow terminal wraps its lines, but no digit is cut off."""
    from rich.console import Console
    from rich.measure import Measurement

    unbounded = Console(width=1_000_000)
    return Console(width=Measurement.get(unbounded, unbounded.options, rich_table).maximum, **options)


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    rows = ([escape(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows)
    writer.writerows(rows)  # csv writes floats by repr, None as nothing
    return buffer.getvalue()


def _json_row(table: Table, row: tuple[Cell, ...]) -> str:
    cells = json_ready(dict(zip(table.columns, row, strict=True)))
    return json.dumps(cells, allow_nan=False).replace("\x7f", r"\u007f")  # which terminals act on


def _markdown(table: Table) -> str:
    numeric = [not any(isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))]
    lines = [table.columns, tuple("---:" if right else "---" for right in numeric)]
    lines += [tuple(format_cell(cell).replace("|", r"\|") for cell in row) for row in table.rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
