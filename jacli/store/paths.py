"""The place of a result file: may it be written, is there room, and how it gets its final name.

``OUT`` is written as ``OUT.part``; while that is laid out it is ``OUT.part.new``, so that a ``.part`` is
always a file that can be continued.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from jacli.durable.write_ahead_log import journal_path, new_journal_path, sync_folder
from jacli.errors import OutputError
from jacli.errors.printable import count_of, quote_path
from jacli.store.schema import ResultLayout, bytes_on_disk
from jacli.untrusted.own_files import ForeignFileError

_BESIDE = (".part", ".part.json", ".part.lock", ".part.journal")
_SOMETHING_ELSE = (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY)
"""Errors that mean a folder where a file belongs."""
_RESERVED = (*_BESIDE, *(f"{ending}.new" for ending in _BESIDE))


def part_path(out: Path) -> Path:
    """Path of the unfinished result: ``OUT.part``.

    >>> part_path(Path("out.h5")).name
    'out.h5.part'
    """
    return out.with_name(out.name + ".part")


def new_part_path(out: Path) -> Path:
    """Where ``OUT.part`` is laid out.

    >>> new_part_path(Path("out.h5")).name
    'out.h5.part.new'
    """
    return out.with_name(out.name + ".part.new")


def progress_path(out: Path) -> Path:
    """``out.h5`` -> ``out.h5.part.json``: how far the run is, see `jacli.store.progress`.

    >>> progress_path(Path("out.h5")).name
    'out.h5.part.json'
    """
    return out.with_name(out.name + ".part.json")


def new_progress_path(out: Path) -> Path:
    """Path under which it is written before it replaces the last one.

    >>> new_progress_path(Path("out.h5")).name
    'out.h5.part.json.new'
    """
    return out.with_name(out.name + ".part.json.new")


def check_folder(out: Path) -> None:
    """Refuse a place where no file can be, before anything is written there.

    >>> check_folder(Path("nowhere/out.h5"))
    Traceback (most recent call last):
        ...
    jacli.errors.OutputError: nowhere/out.h5 cannot be written.
    There is no folder nowhere.
    Create it first, or choose another with -o.

    Raises:
        OutputError: It is a folder, or its folder is missing; or it has the name of an unfinished file.
    """
    if out.name.endswith(_RESERVED):
        raise OutputError(
            f"{out} cannot be the name of a result.",
            why=f"Names that end in {', '.join(_BESIDE)} belong to unfinished files.",
            hint="Choose another name with -o.",
        )
    try:
        if out.is_dir():
            raise OutputError(
                f"{out} is a folder.",
                why="A result is a single file.",
                hint=f"Name a file in it: -o {quote_path(out / 'out.h5')}.",
            )
        if not out.parent.is_dir():
            raise OutputError(
                f"{out} cannot be written.",
                why=f"There is no folder {out.parent}.",
                hint="Create it first, or choose another with -o.",
            )
    except OSError as error:
        raise cannot_write(out, error) from error


def check_place(out: Path, *, overwrite: bool) -> None:
    """Refuse a place that cannot be written, before any work.

    >>> Path("taken.h5").touch()
    >>> check_place(Path("taken.h5"), overwrite=True)
    >>> check_place(Path("taken.h5"), overwrite=False)
    Traceback (most recent call last):
        ...
    jacli.errors.OutputError: taken.h5 exists already.
    jacli does not replace a finished file unless asked to.
    Choose another name with -o, or give --overwrite.

    Raises:
        OutputError: As `check_folder`; or it is a link; or it exists (without ``overwrite``).
    """
    check_folder(out)
    try:
        if out.is_symlink():
            target = os.readlink(out)
            raise OutputError(
                f"{out} is a link to {target}.",
                why="Writing would replace the link and leave its target as it is.",
                hint=f"Name the file itself, -o {quote_path(out.parent / target)}, or remove the link.",
            )
        if out.exists() and not out.is_file():
            raise OutputError(
                f"{out} is not a regular file.",
                why="It is a device or a pipe.",
                hint="Choose another with -o.",
            )
        if out.exists() and not overwrite:
            raise _exists(out)
    except OSError as error:
        raise cannot_write(out, error) from error


def free_bytes(out: Path) -> int:
    """Bytes free on the disk that ``out`` would go to.

    >>> free_bytes(Path("out.h5")) > 0
    True
    """
    try:
        return shutil.disk_usage(out.absolute().parent).free
    except OSError as error:
        raise cannot_write(out, error) from error


def check_room(out: Path, layout: ResultLayout) -> None:
    """Refuse a disk with less room than the values need; under compression nobody knows before.

    What an unfinished file has taken already counts as there.

    Raises:
        OutputError: Naming both figures.
    """
    part = part_path(out)
    taken = part.stat().st_blocks * 512 if part.exists() else 0
    needed, free = max(0, sum(bytes_on_disk(layout).values()) - taken), free_bytes(out)
    if layout.compress == "none" and free < needed:
        raise OutputError(
            f"{out} does not fit on its disk.",
            why=f"The results need {needed:,} bytes, and {free:,} are free in {out.parent}.",
            hint="Write elsewhere with -o, take fewer --samples, or store less (--save none).",
        )


def tidy(out: Path) -> None:
    """Remove what a run that was killed as it began or as it ended left behind; the caller holds the lock.

    >>> Path("y.h5.part.json").touch()  # but no y.h5.part
    >>> tidy(Path("y.h5"))
    >>> Path("y.h5.part.json").exists()
    False

    Raises:
        OutputError: The folder cannot be written.
    """
    part = part_path(out)
    try:
        for path in (new_part_path(out), new_journal_path(part), new_progress_path(out)):
            path.unlink(missing_ok=True)
        if part.exists() and out.exists() and part.samefile(out):
            part.unlink()  # it has its final name already
        if not part.exists():
            for path in (journal_path(part), progress_path(out)):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error


def remove_part(out: Path) -> None:
    """Throw an unfinished file away; the caller holds the lock.

    >>> Path("z.h5.part").touch()
    >>> remove_part(Path("z.h5"))
    >>> Path("z.h5.part").exists()
    False

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        part_path(out).unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    tidy(out)


def publish(part: Path, out: Path, *, overwrite: bool) -> None:
    """Give ``part`` its final name: atomic, and without ``overwrite`` never over another file.

    >>> _ = Path("x.h5.part").write_text("results")
    >>> publish(Path("x.h5.part"), Path("x.h5"), overwrite=True)
    >>> Path("x.h5").read_text(), Path("x.h5.part").exists()
    ('results', False)
    """
    try:
        if overwrite:
            os.replace(part, out)
        else:
            rename_to_new(part, out)
        sync_folder(out.parent)
    except FileExistsError:
        raise OutputError(
            f"{out} exists already.",
            why="It appeared while this run was under way, and was left alone.",
            hint=f"The finished results are in {part}: rename that file.",
        ) from None
    except OSError as error:
        raise OutputError(
            f"{out} cannot be given its final name.",
            why=f"{words_of(error, out)}.",
            hint=f"The finished results are in {part}: rename that file.",
        ) from error


def rename_to_new(old: Path, new: Path) -> None:
    """Rename, but never over another file.

    A hard link refuses an existing name, a rename does not; some file systems know no hard links.

    >>> Path("old").touch()
    >>> rename_to_new(Path("old"), Path("new"))
    >>> Path("new").exists(), Path("old").exists()
    (True, False)

    Raises:
        FileExistsError: ``new`` is in use.
        OSError: The folder cannot be written.
    """
    try:
        os.link(old, new)
    except FileExistsError:
        raise
    except OSError:
        if new.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(new)) from None
        os.replace(old, new)
    else:
        old.unlink(missing_ok=True)


def words_of(error: OSError, out: Path) -> str:
    """The system's message, with the name of its file if that is not ``out``.

    >>> error = OSError(errno.EACCES, "Permission denied", "out.h5.part")
    >>> words_of(error, Path("out.h5")), words_of(error, Path("out.h5.part"))
    ('out.h5.part: Permission denied', 'Permission denied')
    """
    said = error.strerror or str(error)
    about = error.filename2 or error.filename
    if not isinstance(about, str | bytes) or os.path.basename(os.fsdecode(about)) == out.name:
        return said
    return f"{os.path.basename(os.fsdecode(about))}: {said}"


def cannot_write(out: Path, error: OSError) -> OutputError:
    """The error for a path that may not be written.

    >>> print(cannot_write(Path("out.h5"), OSError(errno.ENOSPC, "No space left on device")))
    out.h5 cannot be written.
    No space left on device.
    Free space, or write elsewhere with -o.
    """
    hint = "Choose a folder that you may write to, with -o."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "Free space, or write elsewhere with -o."
    if isinstance(error, ForeignFileError) or error.errno in _SOMETHING_ELSE:
        hint = "Move it away, or choose another name with -o."
    return OutputError(f"{out} cannot be written.", why=f"{words_of(error, out)}.", hint=hint)


def _exists(out: Path) -> OutputError:
    return OutputError(
        f"{out} exists already.",
        why="jacli does not replace a finished file unless asked to.",
        hint="Choose another name with -o, or give --overwrite.",
    )


def part_exists(out: Path) -> OutputError:
    """The error for a ``.part`` that is not to be resumed.

    >>> print(part_exists(Path("out.h5")))
    out.h5.part exists.
    It is the unfinished file of another run.
    Continue that run, remove the file, or choose another name with -o.
    """
    part = part_path(out)
    return OutputError(
        f"{part} exists.",
        why="It is the unfinished file of another run.",
        hint="Continue that run, remove the file, or choose another name with -o.",
    )


def disk_error(out: Path, error: OSError, *, kept: int) -> OutputError:
    """The error for a failed write; says how many finished samples are kept.

    >>> print(disk_error(Path("out.h5"), OSError(errno.ENOSPC, "No space left on device"), kept=64))
    The disk is full: out.h5 is not finished.
    No space left on device in .; 64 finished samples kept in out.h5.part.
    Free space, then run the same command again to resume. Or store less: --save none, --save-dtype
        float16.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    said = words_of(error, out) + (f" in {out.parent}" if full else "")
    why = f"{said}; {count_of(kept, 'finished sample')} kept in {part_path(out)}." if kept else f"{said}."
    again = "then run the same command again to resume." if kept else "then run it again."
    if full:
        return OutputError(
            f"The disk is full: {out} is not finished.",
            why=why,
            hint=f"Free space, {again} Or store less: --save none, --save-dtype float16.",
        )
    return OutputError(f"Writing {out} failed.", why=why, hint=f"Check that disk, {again}")


def not_continued(part: Path, why: str) -> OutputError:
    """The error for a ``.part`` that is damaged, or no unfinished result.

    >>> print(not_continued(Path("out.h5.part"), "its checksum is wrong"))
    out.h5.part cannot be continued.
    It is not an unfinished result of jacli, or is damaged: its checksum is wrong.
    Move it away, start over with --no-resume (which removes it), or choose another name with -o.
    """
    return OutputError(
        f"{part} cannot be continued.",
        why=f"It is not an unfinished result of jacli, or is damaged: {why.rstrip('.')}.",
        hint="Move it away, start over with --no-resume (which removes it), or choose another name with -o.",
    )
