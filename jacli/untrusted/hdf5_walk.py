"""The child process of `jacli.untrusted.hdf5_guard`: walks HDF5 files that nobody vouches for.

The HDF5 library is written in C, and a damaged or malicious file may crash it, keep it busy for ever or
make it allocate whatever a length in the file says.  Here that ends a child with little memory.  It reads
paths from stdin, one JSON string a line, answers each with one line of JSON, and ends after a few idle
seconds.  It is run by its path, so that it imports nothing but h5py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import select
import signal
import time
from pathlib import Path
from typing import Any

import h5py

COPIES = 3
"""Copies of a chunk held while it is decompressed: a buffer that doubles as it grows, and the one before."""
MAX_MEMORY = 2**30
"""Bytes of memory that unpacking a chunk may take at its peak, beyond `COPIES` times the chunk as stored."""
MAX_CHUNK = MAX_MEMORY // COPIES
"""Bytes of a chunk that is hardly anything as stored; the library unpacks it whole for a single number."""
MAX_OBJECTS = 200_000
MAX_CHUNKS = 10_000
"""Entries of a chunk index that are looked at; the index of a dataset of terabytes has millions."""
MAX_ATTRIBUTES = 64 * 2**20
"""Bytes of the attributes of one object."""
IDLE = 5.0
"""Seconds without a question, after which the child ends by itself."""
TRIED_SECONDS = 5.0
"""Spent a file on unpacking chunks that could be bombs."""

_SMALL_CHUNK = 2**20
"""Numbers."""

_HARMLESS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
_RATIO = {h5py.h5z.FILTER_DEFLATE: 1032, h5py.h5z.FILTER_LZF: 264}
"""Bytes that one byte can at most become, by filter; other filters, zstd among them, may do anything."""


class RefusedError(Exception):
    """Why a file is not to be opened, as a sentence."""


def main() -> None:
    """Answer until stdin ends or nothing is asked for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    unread = b""
    while True:
        while b"\n" not in unread:
            if not select.select([0], [], [], IDLE)[0]:
                return
            more = os.read(0, 2**16)
            if not more:
                return
            unread += more
        line, _, unread = unread.partition(b"\n")
        print(json.dumps(examine(*json.loads(line))), flush=True)


def examine(path: str, current: str) -> dict[str, Any]:
    """The fields of `jacli.untrusted.hdf5_guard.Hdf5Findings`, for JSON.

    Args:
        path: Absolute.
        current: The parent's current folder, where HDF5 looks for what is not beside the file.
    """
    with contextlib.suppress(ValueError, OSError):
        limit = _address_space() + MAX_MEMORY + COPIES * _bytes_on_disk(path)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    walk = _Walk(Path(path).parent, Path(current))
    problem = None
    try:
        walk.files.append(path)
        for file in walk.files:  # grows by the sources of virtual datasets
            walk.examine_file(file)
        walk.check_sources()
    except RefusedError as refused:
        problem = str(refused)
    except MemoryError:
        problem = "Its table of contents asks for too much memory."
    return {
        "problem": problem,
        "external_link": walk.external_link,
        "bytes": walk.bytes,
        "sources": walk.files[1:],
    }


class _Walk:
    """One file and those beside it that its virtual datasets draw from."""

    def __init__(self, folder: Path, current: Path) -> None:
        self.folder = folder
        self.current = current
        self.files: list[str] = []
        self.sources: set[tuple[str, str]] = set()
        self.external_link: str | None = None
        self.bytes = 0
        self._tried_until = time.monotonic() + TRIED_SECONDS

    def examine_file(self, path: str) -> None:
        try:
            self.bytes += os.path.getsize(path)
            file = h5py.File(path, "r")
        except OSError:
            return  # a clean refusal: whoever opens it next meets the same one
        with file:
            try:
                self._check_place(path, file)
                self._walk_links(file)
                self._check_attributes(file)
            except (RefusedError, MemoryError):
                raise
            except Exception as error:  # a damaged table of contents fails in as many ways as it has bytes
                raise RefusedError(
                    f"Its table of contents is damaged: {error or type(error).__name__}."
                ) from error

    def _check_place(self, path: str, file: h5py.File) -> None:
        """Numbers come from beside the first file, or from results of jacli, which may lie elsewhere."""
        if Path(path).parent != self.folder and not str(file.attrs.get("schema")).startswith("jacli/"):
            raise RefusedError(f"It takes numbers from another place, {path}, which is no result of jacli.")

    def _walk_links(self, file: h5py.File) -> None:
        seen: set[int] = set()
        count = 0
        failed: list[Exception] = []

        def visit(name: bytes, info: Any) -> bool | None:
            nonlocal count
            count += 1
            try:
                if count > MAX_OBJECTS:
                    raise RefusedError(f"It holds more than {MAX_OBJECTS:,} objects.")
                if info.type == h5py.h5l.TYPE_EXTERNAL and self.external_link is None:
                    self.external_link = name.decode("utf-8", "replace")
                if info.type == h5py.h5l.TYPE_HARD:
                    self._examine_object(file, name, seen)
            except Exception as error:
                failed.append(error)  # h5py does not carry it out of a callback
                return True
            return None

        file.id.links.visit(visit, info=True)
        if failed:
            raise failed[0]

    def _examine_object(self, file: h5py.File, name: bytes, seen: set[int]) -> None:
        item = h5py.h5o.open(file.id, name)
        address = h5py.h5o.get_info(item).addr
        if address not in seen and isinstance(item, h5py.h5d.DatasetID):
            self._check_dataset(h5py.Dataset(item), name.decode("utf-8", "replace"), file.filename)
        seen.add(address)

    def _check_dataset(self, dataset: h5py.Dataset, name: str, path: str) -> None:
        plist = dataset.id.get_create_plist()
        if plist.get_external_count():
            outside = plist.get_external(0)[0].decode("utf-8", "replace")
            raise RefusedError(f"Its dataset {name} takes its numbers from another file, {outside!r}.")
        if plist.get_layout() == h5py.h5d.VIRTUAL:
            self._note_sources(plist, name, path)
        with contextlib.suppress(TypeError):  # a type that NumPy has not: whoever reads it meets the same
            itemsize = dataset.dtype.itemsize
            if plist.get_layout() == h5py.h5d.CHUNKED:
                self._check_chunks(dataset, plist, name, itemsize)
        self._check_attributes(dataset)
        # What jacli itself asks of a dataset: any of it may crash, and then better here.
        dataset.id.get_storage_size()
        if dataset.is_scale:
            dataset.attrs.get("NAME")
        if dataset.shape:
            [axis.label for axis in dataset.dims]
            self._read_a_number(dataset, plist)

    def _read_a_number(self, dataset: h5py.Dataset, plist: Any) -> None:
        """The first, unless all of a large chunk would be unpacked for it."""
        large = plist.get_layout() == h5py.h5d.CHUNKED and math.prod(dataset.chunks) > _SMALL_CHUNK
        if 0 not in dataset.shape and plist.get_layout() != h5py.h5d.VIRTUAL and not large:
            with contextlib.suppress(OSError, TypeError, ValueError):  # refusals; whoever reads it meets them
                dataset[(0,) * len(dataset.shape)]

    def _check_attributes(self, item: h5py.Dataset | h5py.File) -> None:
        total = 0
        for name in item.attrs:
            total += item.attrs.get_id(name).get_storage_size()
            if total > MAX_ATTRIBUTES:
                raise RefusedError(f"Its attributes take more than {MAX_ATTRIBUTES:,} bytes.")
            with contextlib.suppress(TypeError, ValueError, OSError):  # as above
                item.attrs[name]

    def _check_chunks(self, dataset: h5py.Dataset, plist: Any, name: str, itemsize: int) -> None:
        filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())} - _HARMLESS
        nbytes = math.prod(dataset.chunks) * itemsize
        if filters and nbytes > MAX_MEMORY:
            raise RefusedError(f"Its dataset {name} is compressed in chunks of {nbytes:,} bytes.")
        ratio = max((_RATIO.get(code, MAX_CHUNK) for code in filters), default=0)
        suspects: list[tuple[int, ...]] = []
        bombs: list[int] = []
        looked_at = 0

        def look(chunk: Any) -> bool | None:
            nonlocal looked_at
            looked_at += 1
            if filters and nbytes > MAX_CHUNK + chunk.size:
                bombs.append(chunk.size)
            if chunk.size * ratio > MAX_CHUNK:
                suspects.append(chunk.chunk_offset)
            return True if bombs or looked_at >= MAX_CHUNKS else None

        dataset.id.chunk_iter(look)
        if bombs:
            raise RefusedError(
                f"A chunk of its dataset {name} has {bombs[0]:,} bytes and unpacks to {nbytes:,}: "
                f"that takes more than {MAX_MEMORY:,} bytes of memory."
            )
        if suspects and filters - set(_RATIO):
            with contextlib.suppress(ImportError):
                import hdf5plugin  # noqa: F401
        if not all(h5py.h5z.filter_avail(code) for code in filters):
            return  # nobody can unpack them
        for offset in suspects:
            if time.monotonic() > self._tried_until:
                return
            self._try_chunk(dataset, offset, name)

    def _try_chunk(self, dataset: h5py.Dataset, offset: tuple[int, ...], name: str) -> None:
        """One number of it: the library unpacks the whole chunk."""
        started = time.monotonic()
        try:
            dataset[offset]
        except (OSError, MemoryError) as error:
            why = "is damaged, or unpacks to more than it may"
            raise RefusedError(f"A chunk of its dataset {name} {why}.") from error
        if time.monotonic() - started > TRIED_SECONDS:
            raise RefusedError(f"A chunk of its dataset {name} takes seconds to unpack.")

    def _note_sources(self, plist: Any, name: str, path: str) -> None:
        for i in range(plist.get_virtual_count()):
            source, dataset = plist.get_virtual_filename(i), plist.get_virtual_dsetname(i)
            if source in (".", b"."):
                self.sources.add((path, dataset))
                continue
            source = source.decode("utf-8", "surrogateescape") if isinstance(source, bytes) else source
            if source.startswith("/") or "%" in source.replace("%%", ""):
                raise RefusedError(f"Its dataset {name} takes its numbers from another place, {source!r}.")
            source = source.replace("%%", "%")
            beside = Path(path).parent / source
            if not beside.is_file():
                if (self.current / source).exists():
                    raise RefusedError(
                        f"{source} is missing beside it, and HDF5 would take another of that name."
                    )
                continue
            self.sources.add((str(beside), dataset))
            if str(beside) not in self.files:
                self.files.append(str(beside))

    def check_sources(self) -> None:
        """A part that is itself made of parts may be made of itself, and HDF5 follows it without end."""
        by_file: dict[str, list[str]] = {}
        for path, name in self.sources:
            by_file.setdefault(path, []).append(name)
        if self.sources and self.external_link:
            raise RefusedError(f"One of its parts has a link to another file, {self.external_link!r}.")
        for path, names in by_file.items():
            with contextlib.suppress(OSError), h5py.File(path, "r") as file:
                for name in names:
                    with contextlib.suppress(KeyError):
                        if isinstance(file[name], h5py.Dataset) and file[name].is_virtual:
                            raise RefusedError(f"A part of its datasets, {name}, is itself made of parts.")


def _bytes_on_disk(path: str) -> int:
    """Bytes really allocated: a file may declare holes of any length."""
    return os.stat(path).st_blocks * 512


def _address_space() -> int:
    """Bytes of this process's own, in pages in the first field of /proc/self/statm."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
