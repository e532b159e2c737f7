"""Chunks of HDF5 datasets are read only where they unpack to the size of their shape.

HDF5 never compares the two: from a chunk that unpacks short (damaged, or made to do harm) it hands out
whatever lay in memory behind it, other numbers each time.  No filter prevents that, nor storing without one.

So each chunk is checked before its numbers are read: its bytes, as stored, go into a dataset in memory that
has the same filters and one more, which is undone last and fails on any other length.  That serves every
filter that HDF5 has or loads, and costs unpacking twice; a chunk without filters costs a look at the index.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

_LENGTH_FILTER = 511
"""Its number among HDF5's filters: the last one of those for private use."""

_NUMBERS = count()
_MANY = 10_000
"""Chunks of one selection beyond which it pays to ask how many there are: HDF5 counts them."""

_Applied = tuple[int, int, tuple[int, ...], bytes]
"""Code, flags, parameters and name of a filter."""

_SIZED_BY_PARAMETERS = {h5py.h5z.FILTER_NBIT, h5py.h5z.FILTER_SCALEOFFSET}
"""Filters that unpack to the length that their parameters in the file tell."""


def checked(dataset: h5py.Dataset) -> h5py.Dataset | CheckedDataset:
    """The dataset itself, or where it lies in chunks or in other files, one that is checked as it is read.

    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     plain = file.create_dataset("plain", (4,), "f4")
    ...     in_chunks = file.create_dataset("chunks", (4,), "f4", chunks=(2,))
    ...     checked(plain) is plain, type(checked(in_chunks)).__name__
    (True, 'CheckedDataset')
    """
    return dataset if dataset.chunks is None and not dataset.is_virtual else CheckedDataset(dataset)


class CheckedDataset:
    """An ``h5py.Dataset`` whose chunks are checked before their numbers are handed out; sliced alike.

    Everything else (``shape``, ``dtype``, ``attrs``, ...) is that of the dataset.

    Raises:
        OSError: On slicing: a chunk does not unpack to the size of its shape, or not at all.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._checker: _ChunkChecker | None = None
        self._sources_checked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dataset, name)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, key: Any, /) -> Any:
        if self._dataset.is_virtual:
            self._check_sources()
        else:
            self._checker = self._checker or _ChunkChecker(self._dataset)
            self._checker.check(key)
        return self._dataset[key]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as ``np.asarray`` wants it."""
        return np.asarray(self[...], dtype)

    def _check_sources(self) -> None:
        """All chunks of the datasets that a virtual one draws from, once."""
        if self._sources_checked:
            return
        own = Path(self._dataset.file.filename)
        for source in {(source.file_name, source.dset_name) for source in self._dataset.virtual_sources()}:
            name, inside = source
            path = own if name == "." else own.parent / name
            if not path.is_file():
                continue  # HDF5 reads fill values in its place
            with h5py.File(path, "r") as file:
                dataset = file.get(inside)
                if isinstance(dataset, h5py.Dataset) and dataset.chunks is not None:
                    _ChunkChecker(dataset).check_all()
        self._sources_checked = True


class _ChunkChecker:
    """Checks the chunks of a dataset that a selection touches, each once."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._chunks: tuple[int, ...] = dataset.chunks
        self._nbytes = math.prod(self._chunks) * dataset.id.get_type().get_size()
        self._sound: set[tuple[int, ...]] = set()  # offsets of those checked
        self._misfits: set[tuple[int, ...]] | None = None
        self._filters = dataset.id.get_create_plist().get_nfilters()
        self._copies: dict[int, h5py.Dataset | None] = {}  # by the filters that a chunk was stored without

    def check(self, key: Any) -> None:
        """Those that a selection of numbers touches."""
        along = self._touched(key)
        touched = math.prod(map(len, along))
        if touched > _MANY and touched > self._dataset.id.get_num_chunks():
            self.check_all()  # most of them were never written
            return
        for at in product(*along):
            self._check_once(tuple(i * chunk for i, chunk in zip(at, self._chunks, strict=True)))

    def check_all(self) -> None:
        """Those that are stored."""
        offsets: list[tuple[int, ...]] = []
        self._dataset.id.chunk_iter(lambda chunk: offsets.append(chunk.chunk_offset))
        for offset in offsets:
            self._check_once(offset)

    def _check_once(self, offset: tuple[int, ...]) -> None:
        if offset not in self._sound:
            self._check_chunk(offset)
            self._sound.add(offset)

    def _touched(self, key: Any) -> list[Sequence[int]]:
        """Positions in the grid of chunks, along each axis."""
        keys = key if isinstance(key, tuple) else (key,)
        axes = self._dataset.ndim
        at = next((i for i, part in enumerate(keys) if part is Ellipsis), len(keys))
        keys = (*keys[:at], *(slice(None),) * (axes - len(keys) + (at < len(keys))), *keys[at + 1 :])
        if len(keys) != axes:  # a mask over several axes, or an error that h5py tells
            keys = (slice(None),) * axes
        return [
            _touched_along(part, size, chunk)
            for part, size, chunk in zip(keys, self._dataset.shape, self._chunks, strict=True)
        ]

    def _check_chunk(self, offset: tuple[int, ...]) -> None:
        if not self._filters:
            if self._misfits is None:
                self._misfits = self._of_another_size()
            if offset in self._misfits:
                raise self._misfit(offset)
            return
        try:
            mask, packed = self._dataset.id.read_direct_chunk(offset)
        except (OSError, RuntimeError, ValueError):
            # Looking one up takes a walk through all of the index.
            if self._dataset.id.get_chunk_info_by_coord(offset).byte_offset is None:
                return  # never written: it reads as the fill value
            raise
        if mask == (1 << self._filters) - 1:  # stored without its filters
            if len(packed) != self._nbytes:
                raise self._misfit(offset)
            return
        if mask not in self._copies:
            self._copies[mask] = _copy_with_length_filter(self._dataset, self._nbytes, mask)
        copy = self._copies[mask]
        if copy is None:
            return  # a filter that nobody has: HDF5 refuses to read it
        start = (0,) * len(self._chunks)
        try:
            copy.id.write_direct_chunk(start, packed)
            copy[start]  # unpacks all of it
        except OSError as error:
            raise self._misfit(offset) from error

    def _of_another_size(self) -> set[tuple[int, ...]]:
        """Offsets of the chunks that are stored in another size than their shape's; one walk of the index."""
        offsets: set[tuple[int, ...]] = set()

        def look(chunk: Any) -> None:
            if chunk.size != self._nbytes:
                offsets.add(chunk.chunk_offset)

        self._dataset.id.chunk_iter(look)
        return offsets

    def _misfit(self, offset: tuple[int, ...]) -> OSError:
        return OSError(
            f"the chunk of {self._dataset.name} at {offset} does not unpack to the {self._nbytes:,} bytes "
            "of its shape"
        )


def _touched_along(part: Any, size: int, chunk: int) -> Sequence[int]:
    """Numbers of the chunks that an index along one axis touches."""
    if isinstance(part, slice):
        rows = range(size)[part]
        if not rows:
            return ()
        if abs(rows.step) > chunk:
            return sorted({row // chunk for row in rows})
        return range(min(rows[0], rows[-1]) // chunk, max(rows[0], rows[-1]) // chunk + 1)
    indices = np.asarray(part)
    indices = np.flatnonzero(indices) if indices.dtype == bool else indices % max(1, size)
    numbers: list[int] = np.unique(indices // chunk).tolist()
    return numbers


def _copy_with_length_filter(dataset: h5py.Dataset, nbytes: int, mask: int) -> h5py.Dataset | None:
    """A dataset of one such chunk in memory; None where a filter is not there.

    The filters of the mask, which the chunk was stored without, are left out.

    Raises:
        OSError: Its filters have other parameters than its type and shape ask for.
    """
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters()) if not mask >> i & 1]
    if not all(h5py.h5z.filter_avail(code) for code, *_ in filters):
        return None
    _register()
    copy = _create(dataset, nbytes, filters)
    created = copy.id.get_create_plist()
    found = [created.get_filter(i)[2] for i in range(1, len(filters) + 1)]
    longer = [len(now) - len(values) for now, (_, _, values, _) in zip(found, filters, strict=True)]
    if any(more > 0 for more in longer):
        # Some filters put parameters of their own before those they are given, here the second time.
        filters = [
            (code, flags, values[max(0, more) :], name)
            for (code, flags, values, name), more in zip(filters, longer, strict=True)
        ]
        copy = _create(dataset, nbytes, filters)
    for now, (code, _, values, _) in zip(found, filters, strict=True):
        if code in _SIZED_BY_PARAMETERS and now != values:
            raise OSError(f"the filters of {dataset.name} are not those of its type and shape")
    return copy


def _create(dataset: h5py.Dataset, nbytes: int, filters: Sequence[_Applied]) -> h5py.Dataset:
    """A dataset of one chunk in memory, with these filters after that of the length."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(dataset.chunks)
    properties.set_filter(_LENGTH_FILTER, h5py.h5z.FLAG_MANDATORY, (nbytes & 0xFFFFFFFF, nbytes >> 32))
    for code, flags, values, _ in filters:
        properties.set_filter(code, flags, values)
    # HDF5 takes two open files of the same name for one, also in memory.
    file = h5py.File(
        f"chunk {next(_NUMBERS)} in memory", "w", driver="core", backing_store=False, rdcc_nbytes=0
    )
    space, kind = h5py.h5s.create_simple(dataset.chunks), dataset.id.get_type().copy()
    return h5py.Dataset(h5py.h5d.create(file.id, b"chunk", kind, space, properties))


class _FilterClass(ctypes.Structure):
    """``H5Z_class2_t``."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("id", ctypes.c_int),
        ("encoder_present", ctypes.c_uint),
        ("decoder_present", ctypes.c_uint),
        ("name", ctypes.c_char_p),
        ("can_apply", ctypes.c_void_p),
        ("set_local", ctypes.c_void_p),
        ("filter", ctypes.c_void_p),
    )


_Filter = ctypes.CFUNCTYPE(
    ctypes.c_size_t,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.POINTER(ctypes.c_void_p),
)


def _length_filter(flags: int, n_values: int, values: Any, nbytes: int, size: Any, buffer: Any) -> int:
    """Pass on what has the length that the parameters tell; 0 is failure. Nothing is written through it."""
    return nbytes if nbytes == values[0] | values[1] << 32 else 0


_LENGTH_CALLBACK = _Filter(_length_filter)
_CLASS = _FilterClass(
    h5py.h5z.CLASS_T_VERS,
    _LENGTH_FILTER,
    1,
    1,
    b"length",
    None,
    None,
    ctypes.cast(_LENGTH_CALLBACK, ctypes.c_void_p),
)


def _register() -> None:
    """Make the filter known to HDF5, once."""
    if not h5py.h5z.filter_avail(_LENGTH_FILTER):
        h5py.h5z.register_filter(ctypes.addressof(_CLASS))
