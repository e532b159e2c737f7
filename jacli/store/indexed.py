"""Datasets that a merged index leaves in its shards, read from the shards themselves.

HDF5 could read its virtual dataset just as well, but it keeps every shard open that it has met, and where a
process may open no more files (1,024 by default on Linux) it goes on with fill values, without a word
(HDF5 2.0).  Here one shard is open at a time, and one that cannot be read is an error with its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.hdf5_chunks import CheckedDataset, checked
from jacli.store.guarded import open_guarded
from jacli.store.sources import Source, check_sources, path_of, sources_of


class IndexedDataset:
    """A dataset ``(B, ...)`` whose rows lie in the shards; sliced as an `h5py.Dataset` is.

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
                todo="Merge the shards again.",
            )
        self._stops = np.array([source.stop for source in sources])
        self._opened: tuple[int, h5py.File] | None = None
        self._of_shard: h5py.Dataset | CheckedDataset | None = None
        self.chunks: tuple[int, ...] | None = self._dataset(0).chunks

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any, /) -> Any:
        """NumPy's indices along the first axis, those of `h5py.Dataset` along the others."""
        first, rest = self._split(key)
        rows = np.arange(len(self))[first]
        if rows.ndim == 0:
            number = int(np.searchsorted(self._stops, rows, side="right"))
            return self._dataset(number)[(int(rows) - self._sources[number].start, *rest)]
        if rows.size == 0:
            return self._dataset(0)[(slice(0, 0), *rest)]
        numbers = np.searchsorted(self._stops, rows, side="right")
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(rows)]
        result: np.ndarray | None = None
        for start, stop in pairwise(bounds):
            number = int(numbers[start])
            part = _take(self._dataset(number), rows[start:stop] - self._sources[number].start, rest)
            if result is None:
                if len(part) == len(rows):
                    return part
                result = np.empty((len(rows), *part.shape[1:]), part.dtype)
            result[start:stop] = part
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as ``np.asarray`` wants it."""
        return np.asarray(self[...], dtype)

    def _split(self, key: Any) -> tuple[Any, tuple[Any, ...]]:
        """The index along the first axis, and the others."""
        keys = key if isinstance(key, tuple) else (key,)
        at = next((i for i, part in enumerate(keys) if part is Ellipsis), len(keys))
        keys = (*keys[:at], *(slice(None),) * (self.ndim - len(keys) + (at < len(keys))), *keys[at + 1 :])
        return keys[0], keys[1:]

    def _dataset(self, number: int) -> h5py.Dataset:
        """That of a shard, which stays open until another one is read."""
        if self._opened is None or self._opened[0] != number:
            self.close()
            path = path_of(self._index, self._sources[number])
            try:
                self._opened = number, open_guarded(path)
            except OSError as error:
                raise ResultsError(
                    f"{path} cannot be read.",
                    why=f"{self._index} is an index, and this is one of its shards: {error}.",
                    todo="Put it back, or compute it again and merge the shards again.",
                ) from error
            try:
                self._check_fit(path, self._opened[1], self._sources[number])
            except BaseException:
                self.close()  # or the next look would take it for checked
                raise
            self._of_shard = checked(self._opened[1][self.name])
        return self._of_shard

    def _check_fit(self, path: Path, file: h5py.File, source: Source) -> None:
        """A shard's dataset is the index's, but for the number of rows, and of the samples of those rows."""
        found = file.get(self.name)
        expected = (source.stop - source.start, *self.shape[1:])
        if not isinstance(found, h5py.Dataset) or found.shape != expected or found.dtype != self.dtype:
            raise ResultsError(
                f"{path} does not fit {self._index}.",
                why=f"Its {self.name} is not {self.dtype} of shape {expected}, as the index says.",
                todo="Merge the shards again.",
            )
        own = self._positions[source.start : source.stop]
        positions = file.get("sample_index")
        if not isinstance(positions, h5py.Dataset) or not np.array_equal(checked(positions)[...], own):
            raise ResultsError(
                f"{path} does not fit {self._index}.",
                why=f"It does not hold the samples that the index has in rows {source.start} to "
                f"{source.stop - 1}.",
                todo="Merge the shards again.",
            )

    def close(self) -> None:
        """Close the shard that is open."""
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
            found = checked(dataset)
        else:
            if not any(isinstance(made, IndexedDataset) for made in self._made.values()):
                check_sources(self._index, self._attributes)
            found = IndexedDataset(self._index, dataset, sources_of(self._index, self._attributes))
        self._made[dataset.name] = found
        return found

    def close(self) -> None:
        """Close the shards that are open."""
        for made in self._made.values():
            if isinstance(made, IndexedDataset):
                made.close()


def _take(dataset: h5py.Dataset, rows: np.ndarray, rest: tuple[Any, ...]) -> np.ndarray:
    """Rows in any order, each possibly several times; HDF5 itself wants them increasing."""
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and (np.diff(rows) == step).all():
        return np.asarray(dataset[(slice(int(rows[0]), int(rows[-1]) + 1, step), *rest)])
    distinct, inverse = np.unique(rows, return_inverse=True)
    return np.asarray(dataset[(distinct, *rest)])[inverse]
