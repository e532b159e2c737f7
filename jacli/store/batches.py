"""The batches of a result as they ran: where each began, and the CRC-32 of its rows of every dataset.

HDF5 has a checksum filter of its own, but chunks that are written directly bypass all filters, and
contiguous datasets have none.  So a result keeps its own: ``checksums/NAME[i]`` is ``zlib.crc32`` of the
bytes of ``NAME[batch_start[i] : batch_start[i + 1]]`` in C order, as stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import h5py
import numpy as np

from jacli.store.pieces import pieces
from jacli.store.schema import CHECKSUMS, DatasetLayout, chunk_shape


class Stored(Protocol):
    """The part of ``h5py.Dataset`` that a check needs."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, piece: Any, /) -> Any: ...


@dataclass(frozen=True)
class DamagedBatch:
    """Rows that are not what was written.

    Attributes:
        name: Of the dataset.
        start: First row of the batch.
        stop: One past its last row.
    """

    name: str
    start: int
    stop: int

    def __str__(self) -> str:
        rows = f"row {self.start}" if self.stop == self.start + 1 else f"rows {self.start} to {self.stop - 1}"
        return f"{rows} of {self.name}"


def damaged_batches(datasets: Mapping[str, Stored], done: int) -> Iterator[DamagedBatch]:
    """Compare every batch of every dataset with its checksum: reads all finished rows, 4 MiB at a time.

    >>> datasets = {"batch_start": np.array([0, 2]), "x": np.ones((3, 2)), "checksums/x": np.zeros(2)}
    >>> [str(batch) for batch in damaged_batches(datasets, done=3)]
    ['rows 0 to 1 of x', 'row 2 of x']

    Args:
        datasets: Of a result of schema ``jacli/2`` or later.
        done: Finished samples; rows beyond are not read.

    Yields:
        Each damaged batch; one that HDF5 cannot even read (a damaged compressed chunk) among them.

    Raises:
        ValueError: ``batch_start`` or a checksum is itself damaged: the batches do not fit the rows.
    """
    starts = np.asarray(datasets["batch_start"][:])
    bounds = batch_bounds(starts, done)
    for name, checksums in datasets.items():
        if not name.startswith(CHECKSUMS):
            continue
        dataset = datasets.get(name.removeprefix(CHECKSUMS))
        if dataset is None:
            raise ValueError(f"there is {name}, but not the dataset that it belongs to")
        expected = np.asarray(checksums[:])
        if len(expected) != len(starts):
            raise ValueError(f"{name} has {len(expected)} entries for {len(starts)} batches")
        for (start, stop), checksum in zip(bounds, expected.tolist(), strict=True):
            try:
                same = checksum_of(dataset, start, stop) == checksum
            except OSError:
                same = False
            if not same:
                yield DamagedBatch(name.removeprefix(CHECKSUMS), start, stop)


def first_damage(datasets: Mapping[str, Stored], done: int) -> str:
    """Description of the first damaged batch; empty if all checksums agree.

    >>> datasets = {"batch_start": np.array([0, 2]), "x": np.ones((3, 2)), "checksums/x": np.zeros(2)}
    >>> first_damage(datasets, done=3)
    'rows 0 to 1 of x'
    """
    try:
        return str(next(damaged_batches(datasets, done), ""))
    except ValueError as error:
        return str(error)


def batch_bounds(starts: np.ndarray, done: int) -> list[tuple[int, int]]:
    """First and one past the last row of each batch.

    >>> batch_bounds(np.array([0, 32]), done=40)
    [(0, 32), (32, 40)]

    Args:
        starts: ``batch_start``, ``(batches,)``.
        done: Finished samples, where the last batch ends.

    Raises:
        ValueError: No batches divide rows ``0:done`` like that.
    """
    bounds = [*starts.tolist(), done]
    if (done and bounds[0] != 0) or any(stop <= start for start, stop in pairwise(bounds)):
        raise ValueError(f"its batch_start does not divide {done} rows")
    return list(pairwise(bounds))


def batch_holding(starts: np.ndarray, done: int, row: int) -> tuple[int, int]:
    """First and one past the last row of the batch that ``row`` was computed in.

    >>> batch_holding(np.array([0, 32]), done=40, row=35)
    (32, 40)
    """
    number = int(np.searchsorted(starts, row, side="right")) - 1
    stop = int(starts[number + 1]) if number + 1 < len(starts) else done
    return int(starts[number]), stop


def checksum_of(dataset: Stored, start: int, stop: int) -> int:
    """CRC-32 of rows ``start:stop``.

    >>> rows = np.arange(6.0).reshape(3, 2)
    >>> checksum_of(rows, 1, 3) == zlib.crc32(rows[1:].tobytes())
    True
    """
    shape, dtype = dataset.shape, dataset.dtype
    if 0 in shape:
        return 0
    boxes = DatasetLayout(shape, dtype, (), "", chunks=chunk_shape(shape, dtype.itemsize, stop - start))
    checksum = 0
    for piece in pieces(boxes, start, stop):
        checksum = zlib.crc32(np.ascontiguousarray(dataset[piece]).data, checksum)
    return checksum


class BatchRecord:
    """``batch_start`` and ``checksums/`` of a file under way: kept in memory until `save`.

    Entries are appended once per commit, not once per batch: growing fifteen datasets takes a millisecond.

    Args:
        file: Open for writing, with these datasets.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._starts: list[int] = []
        self._checksums: dict[str, list[int]] = {}

    def add(self, start: int, checksums: Mapping[str, int]) -> None:
        """Note a batch that was written: its first row, and the checksum of its rows of each dataset."""
        self._starts.append(start)
        for name, checksum in checksums.items():
            self._checksums.setdefault(name, []).append(checksum)

    def save(self) -> None:
        """Append what was noted since the last time."""
        if not self._starts:
            return
        _append(self._file["batch_start"], self._starts)
        for name, values in self._checksums.items():
            _append(self._file[CHECKSUMS + name], values)
        self._file["batches"].resize(self._file["batch_start"].shape)
        self._starts, self._checksums = [], {}

    def cut(self, done: int) -> None:
        """Drop the batches that begin at or after ``done``: they are going to be computed again."""
        count = int(np.count_nonzero(self._file["batch_start"][:] < done))
        growing = [self._file["batch_start"], self._file["batches"]]
        self._file[CHECKSUMS].visititems(
            lambda name, found: growing.append(found) if isinstance(found, h5py.Dataset) else None
        )
        for dataset in growing:
            dataset.resize((count,))


def _append(dataset: h5py.Dataset, values: list[int]) -> None:
    length = len(dataset)
    dataset.resize((length + len(values),))
    dataset[length:] = values
