"""What makes a commit of the unfinished file whole: its small changes, written down before they are made.

A page that is overwritten in place may be half written when the process or the machine dies.  So the new
pages, and the size of the file, are written to a file of their own first, and that gets its name by a
rename.  Whoever opens the unfinished file lays these pages over it: what had been done already is done
once more, to the same effect.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jacli.untrusted.own_files import read_own, replace_own

PAGE = 4096
"""Bytes of a page."""

_MAGIC = b"jacli journal 1\n"
_HEADER = struct.Struct("<16sQQQ")  # magic, size of the file, its inode, number of pages
_PAGE_NUMBER = struct.Struct("<Q")
_CHECK = struct.Struct("<I")
_MAX_BYTES = 2**31
"""Largest log that is read, in bytes; HDF5 changes far fewer pages between two commits."""


@dataclass(frozen=True)
class Commit:
    """The last commit of an unfinished file.

    Attributes:
        size: Of the file, in bytes.
        file: Its inode number.
        pages: Page number -> its bytes.
    """

    size: int
    file: int
    pages: Mapping[int, bytes | bytearray]


def journal_path(part: Path) -> Path:
    """``out.h5.part`` -> ``out.h5.part.journal``.

    >>> journal_path(Path("out.h5.part")).name
    'out.h5.part.journal'
    """
    return part.with_name(part.name + ".journal")


def new_journal_path(part: Path) -> Path:
    """Path under which a log is written before it replaces the last one.

    >>> new_journal_path(Path("out.h5.part")).name
    'out.h5.part.journal.new'
    """
    return part.with_name(part.name + ".journal.new")


def write_journal(part: Path, commit: Commit) -> None:
    """Write the commit down so that it outlives a power cut, in place of the last one.

    >>> part, commit = Path("out.h5.part"), Commit(size=5000, file=5000, pages={1: bytes(PAGE)})
    >>> write_journal(part, commit)
    >>> read_journal(part) == commit
    True

    Raises:
        OSError: The disk is full, or failed; the last one stays.
    """
    path, new = journal_path(part), new_journal_path(part)
    body = [_HEADER.pack(_MAGIC, commit.size, commit.file, len(commit.pages))]
    for number, page in commit.pages.items():
        body += [_PAGE_NUMBER.pack(number), bytes(page)]
    text = b"".join(body)
    replace_own(path, text + _CHECK.pack(zlib.crc32(text)), new=new, sync=True)
    sync_folder(path.parent)


def read_journal(part: Path) -> Commit | None:
    """The last commit; None where none is recorded.

    >>> read_journal(Path("no.h5.part")) is None
    True

    Raises:
        OSError: It cannot be read.
        ValueError: It is no journal, or damaged.
    """
    try:
        data = read_own(journal_path(part), limit=_MAX_BYTES)
    except FileNotFoundError:
        return None
    record = _PAGE_NUMBER.size + PAGE
    if len(data) < _HEADER.size + _CHECK.size or not data.startswith(_MAGIC):
        raise ValueError("it does not begin as a journal does")
    _, size, file, count = _HEADER.unpack_from(data)
    (check,) = _CHECK.unpack(data[-_CHECK.size :])
    if len(data) != _HEADER.size + count * record + _CHECK.size or zlib.crc32(data[: -_CHECK.size]) != check:
        raise ValueError("its checksum is wrong")
    pages = {}
    for at in range(_HEADER.size, len(data) - _CHECK.size, record):
        (number,) = _PAGE_NUMBER.unpack_from(data, at)
        pages[number] = data[at + _PAGE_NUMBER.size : at + record]
    return Commit(size, file, pages)


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names in a folder, where its file system can tell."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.EROFS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
