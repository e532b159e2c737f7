"""The file beneath HDF5 that survives a full disk.

When a write of HDF5 fails, its cache can no longer be emptied: closing the file raises again, and the
interpreter crashes when it frees the last handle (seen with HDF5 2.0, h5py 3.16). So HDF5 writes
through this object, which remembers the first error and claims success from then on; whoever writes
asks for `error` after each flush and gives up in good order. Same speed as HDF5's own driver (2.4 GB/s
into tmpfs): the work is in the kernel.
"""

from __future__ import annotations

import os
from pathlib import Path


class FileSink:
    """A new file for h5py's ``fileobj`` driver.

    Args:
        path: Must not exist.

    Attributes:
        error: The first error of the system, or None.

    Raises:
        OSError: The file exists or cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(
            path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        self._position = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; h5py asks for the size with ``seek(0, SEEK_END)``."""
        self._position = offset if whence == os.SEEK_SET else os.fstat(self._descriptor).st_size + offset
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
        got = 0
        while got < len(view):
            count = os.preadv(self._descriptor, [view[got:]], self._position + got)
            if count == 0:
                view[got:] = bytes(len(view) - got)
                break
            got += count
        self._position += len(view)
        return len(view)

    def write(self, buffer: memoryview) -> int:
        """Write all of ``buffer``, in as many calls as the system needs (one writes at most 2 GiB)."""
        view = memoryview(buffer).cast("B")
        size = len(view)
        try:
            while self.error is None and len(view):
                count = os.pwrite(self._descriptor, view, self._position)
                self._position += count
                view = view[count:]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int) -> int:
        """Set the length of the file."""
        try:
            if self.error is None:
                os.ftruncate(self._descriptor, size)
        except OSError as error:
            self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back here: what HDF5 wrote is with the system and survives this process."""

    def sync(self) -> None:
        """Wait until the disk has everything."""
        try:
            if self.error is None:
                os.fsync(self._descriptor)
        except OSError as error:
            self.error = error

    def close(self) -> None:
        """Release the file."""
        os.close(self._descriptor)
