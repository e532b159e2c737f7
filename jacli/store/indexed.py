"""Datasets that a merged index leaves in its shards, read from the shards themselves.

HDF5 could read its virtual dataset just as well, but it keeps every shard open that it has met, and where a
process may open no more files (1,024 by default on Linux) it goes on with fill values, without a word
(HDF5 2.0).  Here one shard is open at a time, and one that cannot be read is an error with its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.store.numpy_indices import Box, take
from jacli.store.sources import Source, check_sources, path_of, sources_of
from jacli.store.untrusted_file import closed, open_guarded
from jacli.untrusted.hdf5_chunks import CheckedDataset, checked


class IndexedDataset:
    """A dataset ``(B, ...)`` whose rows lie in the shards; indexed as a NumPy array is.

    Attributes:
        name: In the index and in every shard.
        shape: Of all shards together.
        dtype: Of its numbers.
        nbytes: Of its numbers, uncompressed.
        chunks: Of the first shard's dataset; None where it lies in one run.
    """

    def __init__(self, index: Path, dataset: h5py.Dataset, sources: Sequence[Source]) -> None:
        self.name: str = dataset.name.lstrip("/")
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype
        self.nbytes: int = dataset.nbytes
        self.dims = dataset.dims
        self.attrs = dataset.attrs
        self._index = index
        self._sources = sources
        self._positions = dataset.file.get("sample_index")
        if not sources or sources[-1].stop != len(self) or not isinstance(self._positions, h5py.Dataset):
            raise ResultsError(
                f"{index} is damaged, or was edited.",
                why=f"Its shards hold {sources[-1].stop if sources else 0} samples, and its {self.name} "
                f"has {len(self)}; or it does not say which.",
                hint="Merge the shards again.",
            )
        self._stops = np.array([source.stop for source in sources])
        self._opened: tuple[int, h5py.File] | None = None
        self._closed = False
        self._of_shard: h5py.Dataset | CheckedDataset | None = None
        self.chunks: tuple[int, ...] | None = self._dataset(0).chunks

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any, /) -> Any:
        """As NumPy indexes an array; only what is indexed is read."""
        per_chunk = self.chunks[0] if self.chunks else 1
        return take(self._read, self.shape, key, itemsize=self.dtype.itemsize, rows_per_chunk=per_chunk)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as ``np.asarray`` wants it."""
        return np.asarray(self[...], dtype)

    def _read(self, box: Box) -> np.ndarray:
        """A box of all shards together, shard by shard."""
        rows, rest = range(len(self))[box[0]], box[1:]
        if not rows:
            return np.asarray(self._dataset(0)[(slice(0, 0), *rest)])
        first, last = np.searchsorted(self._stops, [rows[0], rows[-1]], side="right").tolist()
        result: np.ndarray | None = None
        for number in range(first, last + 1):
            source = self._sources[number]
            # Of rows r0, r0 + step, ..., those from start to stop - 1 lie in this shard.
            begin, end = (
                min(max(0, math.ceil((bound - rows[0]) / rows.step)), len(rows))
                for bound in (source.start, source.stop)
            )
            inside = rows[begin:end]
            if not inside:
                continue
            there = slice(inside[0] - source.start, inside[-1] + 1 - source.start, rows.step)
            part = np.asarray(self._dataset(number)[(there, *rest)])
            if len(part) == len(rows):
                return part
            if result is None:
                result = np.empty((len(rows), *part.shape[1:]), part.dtype)
            result[begin:end] = part
        assert result is not None  # every row lies in a shard
        return result

    def _dataset(self, number: int) -> h5py.Dataset:
        """That of a shard, which stays open until another one is read."""
        if self._closed:
            raise closed(self._index)
        if self._opened is None or self._opened[0] != number:
            self._close_shard()
            path = path_of(self._index, self._sources[number])
            try:
                self._opened = number, open_guarded(path)
            except OSError as error:
                raise ResultsError(
                    f"{path} cannot be read.",
                    why=f"{self._index} is an index, and this is one of its shards: {error}.",
                    hint="Put it back, or compute it again and merge the shards again.",
                ) from error
            try:
                self._check_fit(path, self._opened[1], self._sources[number])
            except BaseException:
                self._close_shard()  # or the next look would take it for checked
                raise
            self._of_shard = checked(self._opened[1][self.name])
        return self._of_shard

    def _check_fit(self, path: Path, file: h5py.File, source: Source) -> None:
        """A shard's dataset is the index's, but for the number of rows, and of the samples of those rows."""
        dataset = file.get(self.name)
        expected = (source.stop - source.start, *self.shape[1:])
        if not isinstance(dataset, h5py.Dataset) or dataset.shape != expected or dataset.dtype != self.dtype:
            raise ResultsError(
                f"{path} does not fit {self._index}.",
                why=f"Its {self.name} is not {self.dtype} of shape {expected}, as the index says.",
                hint="Merge the shards again.",
            )
        own = self._positions[source.start : source.stop]
        positions = file.get("sample_index")
        if not isinstance(positions, h5py.Dataset) or not np.array_equal(checked(positions)[...], own):
            raise ResultsError(
                f"{path} does not fit {self._index}.",
                why=f"It does not hold the samples that the index has in rows {source.start} to "
                f"{source.stop - 1}.",
                hint="Merge the shards again.",
            )

    def close(self) -> None:
        """Close the shard that is open; nothing can be read afterwards."""
        self._close_shard()
        self._closed = True

    def _close_shard(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None


class Shards:
    """The sources of an open file, if it is a merged index; they are looked at when one is first needed."""

    def __init__(self, index: Path, attributes: Mapping[str, object]) -> None:
        self._index = index
        self._attributes = attributes
        self._made: dict[str, h5py.Dataset | CheckedDataset | IndexedDataset] = {}

    def dataset(self, dataset: h5py.Dataset) -> h5py.Dataset | CheckedDataset | IndexedDataset:
        """The dataset itself, its chunks checked, or where it is left in shards, one that reads those.

        Raises:
            ResultsError: A shard is gone, or is another file now.
        """
        if dataset.name in self._made:
            return self._made[dataset.name]
        if not dataset.is_virtual or "sources" not in self._attributes:
            readable = checked(dataset)
        else:
            if not any(isinstance(made, IndexedDataset) for made in self._made.values()):
                check_sources(self._index, self._attributes)
            readable = IndexedDataset(self._index, dataset, sources_of(self._index, self._attributes))
        self._made[dataset.name] = readable
        return readable

    def close(self) -> None:
        """Close the shards that are open."""
        for dataset in self._made.values():
            if isinstance(dataset, IndexedDataset):
                dataset.close()
