"""Opening the small files that lie beside a result: lock, progress, journal, the unfinished file itself.

Their names can be guessed, so that anyone who may write to the folder can put a link there first.  None of
them is ever opened through a link: what is opened is a regular file with a single name, or it is an error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

MAX_READ = 2**20
"""Bytes of a progress file or a lock; a longer one is none."""


class ForeignFileError(OSError):
    """The path holds something not made by jacli: a link, a pipe, a folder, a file with a second name."""


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file that has no other name; never one that a link leads to.

    >>> _ = Path("link").symlink_to("elsewhere")
    >>> open_own(Path("link"), os.O_RDONLY)
    Traceback (most recent call last):
        ...
    jacli.untrusted.own_files.ForeignFileError: [Errno 22] link is a symbolic link, which jacli never makes

    Args:
        path: Its name.
        flags: As of `os.open`, without ``O_TRUNC``.

    Raises:
        ForeignFileError: Something else lies there.
        OSError: It is not there, or cannot be opened.
    """
    try:
        # O_NONBLOCK: a pipe would wait for somebody at its other end.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) and path.is_symlink():
            raise _foreign(path, "a symbolic link") from error
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _foreign(path, "not a regular file") from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        regular = stat.S_ISREG(status.st_mode)
        raise _foreign(path, "a file with a second name (a hard link)" if regular else "not a regular file")
    return descriptor


def read_own(path: Path, *, limit: int = MAX_READ) -> bytes:
    """All of it.

    >>> replace_own(Path("status.json"), b"{}", new=Path("status.json.new"))
    >>> read_own(Path("status.json"))
    b'{}'

    Raises:
        ForeignFileError: It is none of ours, or longer than ``limit`` bytes.
        OSError: It is not there, or cannot be read.
    """
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise _foreign(path, f"a file of more than {limit:,} bytes")
    return data


def replace_own(path: Path, data: bytes, *, new: Path, sync: bool = False) -> None:
    """Write a file anew, and put it in place of the one at ``path`` in one step.

    A link at either name is replaced itself; what it leads to stays as it is.

    >>> Path("old").symlink_to("elsewhere")
    >>> replace_own(Path("old"), b"numbers", new=Path("old.new"))
    >>> Path("old").is_symlink(), Path("elsewhere").exists()
    (False, False)

    Args:
        path: The file's name.
        data: What it is to hold.
        new: Where it is written first, in the same folder.
        sync: Wait until the disk has it.

    Raises:
        OSError: The disk is full, or the folder cannot be written; the old file stays, and ``new`` goes.
    """
    with contextlib.suppress(FileNotFoundError):
        new.unlink()  # of a process that was killed meanwhile
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _foreign(path: Path, what: str) -> ForeignFileError:
    return ForeignFileError(errno.EINVAL, f"{path.name} is {what}, which jacli never makes")
