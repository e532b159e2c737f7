"""The file beneath HDF5: what is written between two commits lands wholly, or not at all.

HDF5 changes a file in many small writes, and a process that is killed among them leaves a file that
nobody can read.  Here, bytes that the last commit knows are never changed before the next one: their new
pages wait in memory, where HDF5 reads them back, and a commit writes them down
(`jacli.durable.write_ahead_log`) before it puts them in place.  Bytes beyond, where new chunks
go, are written at once: nothing refers to them yet.  So memory is that of HDF5's own bookkeeping,
whatever the size of a batch.

When a write of HDF5 fails, its cache can no longer be emptied: closing the file raises again, and the
interpreter crashes when it frees the last handle (seen with HDF5 2.0, h5py 3.16). So this object remembers
the first error and claims success from then on; whoever writes asks for `error` after each flush and gives
up in good order. Same speed as HDF5's own driver (2.4 GB/s into tmpfs): the work is in the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from jacli.durable.write_ahead_log import PAGE, Commit, journal_path, read_journal, sync_folder, write_journal
from jacli.untrusted.own_files import open_own


class FileSink:
    """A file for h5py's ``fileobj`` driver.

    Args:
        path: The file; what is there is opened as its last commit left it.
        create: Make it; it must not exist.

    Attributes:
        error: The first error of the system, or None.

    Raises:
        OSError: The file exists or cannot be created; or it is not there, or cannot be opened.
        ValueError: The record of its last commit is damaged, or of another file.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self._path = path
        last = None if create else read_journal(path)
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self._descriptor = open_own(path, flags)
        self._position = 0
        self._pages: dict[int, bytearray] = {}  # of the committed part, changed since
        self.error: OSError | None = None
        if last is not None:
            try:
                self._check(last)
                self._put_in_place(last)
            except BaseException:
                os.close(self._descriptor)
                raise
        self._size = self._committed = os.fstat(self._descriptor).st_size

    def _check(self, last: Commit) -> None:
        """Whether a commit may be laid over the file: it was made of this file, and that is all there."""
        status = os.fstat(self._descriptor)
        if status.st_size < last.size:
            raise ValueError(f"it has {status.st_size:,} bytes, and had {last.size:,} at its last commit")
        if status.st_ino != last.file:
            # A copy: as good, unless it was made while the commit was being put in place.
            for number, page in last.pages.items():
                there = bytearray(PAGE)
                self._read_at(memoryview(there), number * PAGE)
                length = min(PAGE, last.size - number * PAGE)
                if there[:length] != page[:length]:
                    raise ValueError(f"{journal_path(self._path).name} is of another file")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; h5py asks for the size with ``seek(0, SEEK_END)``."""
        self._position = offset if whence == os.SEEK_SET else self._size + offset
        return self._position

    def tell(self) -> int:
        """The current position, in bytes."""
        return self._position

    def read(self, size: int) -> bytes:
        """What is at the position; h5py takes only an object that has it for a file, and calls `readinto`."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``; what is not there (an earlier write failed) reads as zeros."""
        view = memoryview(buffer).cast("B")
        try:
            self._read_at(view, self._position)
        except OSError as error:
            self.error = error
        begin, end = self._position, self._position + len(view)
        for number in self._changed(begin, end):
            first, last = max(begin, number * PAGE), min(end, (number + 1) * PAGE)
            page = self._pages[number]
            view[first - begin : last - begin] = page[first - number * PAGE : last - number * PAGE]
        self._position = end
        return len(view)

    def _changed(self, begin: int, end: int) -> list[int]:
        """Pages of these bytes that wait in memory."""
        numbers = range(begin // PAGE, -(-end // PAGE))
        if len(numbers) > len(self._pages):
            return [number for number in self._pages if number in numbers]
        return [number for number in numbers if number in self._pages]

    def _read_at(self, view: memoryview, position: int) -> None:
        got = 0
        while got < len(view):
            count = os.preadv(self._descriptor, [view[got:]], position + got)
            if count == 0:
                view[got:] = bytes(len(view) - got)
                return
            got += count

    def write(self, buffer: memoryview) -> int:
        """Take all of ``buffer``: what the last commit knows into memory, the rest onto the disk."""
        view = memoryview(buffer).cast("B")
        known = max(0, min(len(view), -(-self._committed // PAGE) * PAGE - self._position))
        try:
            if self.error is None:
                if known:
                    self._keep(view[:known], self._position)
                self._write_at(view[known:], self._position + known)
        except OSError as error:
            self.error = error
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def _keep(self, view: memoryview, position: int) -> None:
        begin, end = position, position + len(view)
        for number in range(begin // PAGE, -(-end // PAGE)):
            first, last = max(begin, number * PAGE), min(end, (number + 1) * PAGE)
            if number not in self._pages:
                page = bytearray(PAGE)
                if last - first < PAGE:
                    self._read_at(memoryview(page), number * PAGE)
                self._pages[number] = page
            self._pages[number][first - number * PAGE : last - number * PAGE] = view[
                first - begin : last - begin
            ]

    def _write_at(self, view: memoryview, position: int) -> None:
        """In as many calls as the system needs (one writes at most 2 GiB)."""
        while len(view):
            count = os.pwrite(self._descriptor, view, position)
            position += count
            view = view[count:]

    def truncate(self, size: int) -> int:
        """Set the length of the file; what the last commit knows is cut off by the next one."""
        try:
            if self.error is None and size >= self._committed:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        self._size = size
        return size

    def flush(self) -> None:
        """HDF5 flushes whenever it likes; what counts is `commit`."""

    def first_commit(self, name: Path, rename: Callable[[Path, Path], None]) -> None:
        """Commit what was written so far and rename the file: it is never seen half written."""
        try:
            if self.error is None:
                os.fsync(self._descriptor)
                write_journal(name, self._commit_now())
                rename(self._path, name)
                sync_folder(name.parent)
                self._path, self._committed = name, self._size
        except OSError as error:
            self.error = error

    def commit(self) -> None:
        """Make everything written so far part of the file, for good: a power cut does not take it away."""
        try:
            if self.error is None:
                commit = self._commit_now()
                _sync_data(self._descriptor)
                write_journal(self._path, commit)
                self._put_in_place(commit)
                self._committed = self._size
                self._pages = {}
        except OSError as error:
            self.error = error

    def _commit_now(self) -> Commit:
        status = os.fstat(self._descriptor)
        if status.st_size < self._size:
            os.ftruncate(self._descriptor, self._size)  # so that a file is never shorter than its commit
        return Commit(self._size, status.st_ino, self._pages)

    def _put_in_place(self, commit: Commit) -> None:
        os.ftruncate(self._descriptor, commit.size)
        for number, page in commit.pages.items():
            at = number * PAGE
            self._write_at(memoryview(page)[: max(0, commit.size - at)], at)

    def close(self) -> None:
        """Release the file; what was not committed is forgotten."""
        os.close(self._descriptor)

    def remove_journal(self) -> None:
        """The file is whole, and waits for the disk; its journal is of no more use."""
        try:
            if self.error is None:
                os.fsync(self._descriptor)
                journal_path(self._path).unlink(missing_ok=True)
        except OSError as error:
            self.error = error


def _sync_data(descriptor: int) -> None:
    """Wait for the bytes and what is needed to find them; macOS knows the whole only."""
    getattr(os, "fdatasync", os.fsync)(descriptor)
