"""A table in a file of its own: all of it or nothing, and never over another file unasked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from secrets import token_hex

from jacli.errors import UsageError
from jacli.store.paths import cannot_write, check_place, rename_to_new


def check_table_place(out: Path, files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a place that cannot be written, before any work is done.

    Args:
        out: Where the table goes.
        files: What is read.
        overwrite: Whether a file there is replaced.

    Raises:
        UsageError: It is one of the files that are read.
        OutputError: As `check_place`.
    """
    if any(_is_same(out, file) for file in files):
        raise UsageError(
            f"{out} is both read and written.",
            why="The table would replace the results.",
            hint="Give --out another name.",
        )
    check_place(out, overwrite=overwrite)


def _is_same(out: Path, file: Path) -> bool:
    try:
        return out.samefile(file)
    except (OSError, ValueError):
        return False


def write_table(out: Path, text: str, *, overwrite: bool) -> None:
    """Write a table under its name, by an atomic rename; where that fails, nothing is left behind.

    Raises:
        OutputError: The folder cannot be written, the disk is full, or ``out`` appeared meanwhile.
    """
    part = out.with_name(f".jacli-{token_hex(8)}")  # short: a name may have 255 bytes
    try:
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text)
            if overwrite:
                os.replace(part, out)
            else:
                rename_to_new(part, out)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
