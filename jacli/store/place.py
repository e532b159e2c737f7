"""The place of a result file: may it be written, is there room, and how it gets its final name."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from jacli.errors import OutputError
from jacli.store.schema import ResultLayout, bytes_on_disk
from jacli.store.sink import FileSink


def part_path(out: Path) -> Path:
    """Where ``out`` is written until it is complete."""
    return out.with_name(out.name + ".part")


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that cannot be written, before any work.

    Raises:
        OutputError: It exists (without ``overwrite``), its ``.part`` exists, or its folder is missing.
    """
    try:
        if out.is_dir():
            raise OutputError(
                f"{out} is a folder.",
                why="Results are one file.",
                todo=f"Name a file in it: -o {out / 'out.h5'}.",
            )
        if not out.parent.is_dir():
            raise OutputError(
                f"{out} cannot be written.",
                why=f"There is no folder {out.parent}.",
                todo="Create it first, or choose another with -o.",
            )
        if out.exists() and not out.is_file():
            raise OutputError(
                f"{out} is no regular file.", why="It is a device or a pipe.", todo="Choose another with -o."
            )
        if (out.exists() or out.is_symlink()) and not overwrite:
            raise _exists(out)
        if part_path(out).exists():
            raise _part_exists(out)
    except OSError as error:
        raise cannot_write(out, error) from error


def free_bytes(out: Path) -> int:
    """Bytes free on the disk that ``out`` would go to."""
    try:
        return shutil.disk_usage(out.absolute().parent).free
    except OSError as error:
        raise cannot_write(out, error) from error


def check_room(out: Path, layout: ResultLayout) -> None:
    """Refuse a disk with less room than the values need; under compression nobody knows before.

    Raises:
        OutputError: Naming both figures.
    """
    needed, free = sum(bytes_on_disk(layout).values()), free_bytes(out)
    if layout.compress == "none" and free < needed:
        raise OutputError(
            f"{out} does not fit on its disk.",
            why=f"The results need {needed:,} bytes, and {free:,} are free in {out.parent}.",
            todo="Write elsewhere with -o, take fewer --samples, or store less (--save none).",
        )


def create_part(out: Path) -> FileSink:
    """Create ``OUT.part``, which must not exist.

    Raises:
        OutputError: It exists, or the folder cannot be written.
    """
    try:
        return FileSink(part_path(out))
    except FileExistsError:
        raise _part_exists(out) from None
    except OSError as error:
        raise cannot_write(out, error) from error


def publish(part: Path, out: Path, *, overwrite: bool) -> None:
    """Give ``part`` its final name: atomic, and without ``overwrite`` never over another file."""
    try:
        if overwrite:
            os.replace(part, out)
        else:
            _link_or_rename(part, out)
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise OutputError(
            f"{out} exists already.",
            why="It appeared while this run was under way, and was left alone.",
            todo=f"The finished results are in {part}: rename that file.",
        ) from None
    except OSError as error:
        raise OutputError(
            f"{out} cannot be given its final name.",
            why=f"{error.strerror or error}.",
            todo=f"The finished results are in {part}: rename that file.",
        ) from error


def _link_or_rename(part: Path, out: Path) -> None:
    """A hard link refuses an existing name, a rename does not; some file systems know no hard links."""
    try:
        os.link(part, out)
    except FileExistsError:
        raise
    except OSError:
        if out.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(out)) from None
        os.replace(part, out)


def cannot_write(out: Path, error: OSError) -> OutputError:
    """What to tell of a place that the system does not let be written."""
    return OutputError(
        f"{out} cannot be written.",
        why=f"{error.strerror or error}.",
        todo="Choose a folder that you may write to, with -o.",
    )


def _exists(out: Path) -> OutputError:
    return OutputError(
        f"{out} exists already.",
        why="A finished file is never touched unasked.",
        todo="Choose another name with -o, or give --overwrite.",
    )


def _part_exists(out: Path) -> OutputError:
    part = part_path(out)
    return OutputError(
        f"{part} exists.",
        why="Another process may be writing it, or a run was killed.",
        todo="If none is running, remove that file and run again.",
    )


def disk_error(out: Path, error: OSError) -> OutputError:
    """What to tell of a write that failed."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {out} was not written.",
            why=f"{error.strerror} in {out.parent}; the unfinished file was removed.",
            todo="Free space, write elsewhere with -o, or store less: --save none, --save-dtype float16.",
        )
    return OutputError(
        f"Writing {out} failed.",
        why=f"{error.strerror or error}; the unfinished file was removed.",
        todo="Check that disk, or write elsewhere with -o.",
    )
