"""Zip archives that nobody vouches for: is the table of contents honest?

torch and NumPy write plain archives: members one after another from the first byte on, stored or
deflated, no comment.  Only such archives are read here, so that Python's reader and torch's own, in
C++, cannot disagree on what the file holds, and so that nothing unpacks to more than it may.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO

from jacli.untrusted.content import MAX_EXPANSION

_END = b"PK\x05\x06"
_END_BYTES = 22
_LOCAL_HEADER_BYTES = 30
_ENCRYPTED = 0x1


class ArchiveError(ValueError):
    """Why an archive is not read, as a sentence."""


def check_zip(
    file: IO[bytes], *, checksums: bool = True, expansion: int = MAX_EXPANSION
) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive, once its table of contents is found to be honest.

    >>> import io
    >>> archive = io.BytesIO()
    >>> with zipfile.ZipFile(archive, "w") as file:
    ...     file.writestr("x.npy", b"numbers")
    >>> list(check_zip(archive))
    ['x.npy']

    Args:
        file: Seekable; its position is lost.
        checksums: Compare every member with its checksum, which costs one read of the file.
        expansion: Bytes that all members together may unpack to beyond the file's own.

    Raises:
        ArchiveError: It is damaged, or made to mislead its reader.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _check_contents(archive, file, expansion)
            bad = archive.testzip() if checksums else None
    except ArchiveError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
        struct.error,
    ) as error:
        lines = str(error).splitlines() or [f"{type(error).__name__}: the file ends early"]
        raise ArchiveError(f"Its zip archive is corrupt: {lines[-1]}.") from error
    if bad is not None:
        raise ArchiveError(f"The checksum of its member {bad} is wrong.")
    return members


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member, of which no more is unpacked than its declared size: ``ZipFile.read`` unpacks all there is.

    >>> with zipfile.ZipFile("x.zip", "w") as file:
    ...     file.writestr("x.npy", b"numbers")
    >>> with zipfile.ZipFile("x.zip") as archive:
    ...     read_member(archive, "x.npy")
    b'numbers'

    Raises:
        ArchiveError: It is damaged.
    """
    info = archive.getinfo(name)
    try:
        with archive.open(info) as member:
            return member.read(info.file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ArchiveError(f"Its member {name} is damaged: {error}.") from error


def _check_contents(archive: zipfile.ZipFile, file: IO[bytes], expansion: int) -> dict[str, zipfile.ZipInfo]:
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_BYTES))
    if not file.read().startswith(_END) or archive.comment or (infos and infos[0].header_offset):
        raise ArchiveError("Its zip archive begins or ends with foreign bytes.")
    names = {info.filename.lower() for info in infos}  # torch's reader ignores case
    if len(names) < len(infos):
        raise ArchiveError("Its zip archive holds two members of one name.")
    unpacked = sum(info.file_size for info in infos)
    if unpacked > size + expansion:
        raise ArchiveError(f"It unpacks to {unpacked:,} bytes, and has {size:,} itself.")
    # Behind the last member lies the table of contents.
    ends = [*(info.header_offset for info in infos[1:]), archive.start_dir]
    for info, end in zip(infos, ends, strict=True):
        _check_member(info, end)
    return {info.filename: info for info in infos}


def _check_member(info: zipfile.ZipInfo, end: int) -> None:
    name = info.filename
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or info.orig_filename != name:
        raise ArchiveError(f"Its member {info.orig_filename!r} has a name that leads out of the archive.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & _ENCRYPTED:
        raise ArchiveError(f"Its member {name} is compressed or encrypted in a way that torch never uses.")
    if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
        raise ArchiveError(f"Its member {name} has two sizes: {info.file_size:,} and {info.compress_size:,}.")
    if info.header_offset + _LOCAL_HEADER_BYTES + len(name.encode()) + info.compress_size > end:
        raise ArchiveError(f"Its member {name} overlaps what follows it.")
