"""A dataset of an open file that is indexed as a NumPy array is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike

from jacli.store.numpy_indices import Box, take
from jacli.store.untrusted_file import closed
from jacli.untrusted.hdf5_chunks import CheckedDataset


class NumpyDataset(h5py.Dataset):  # type: ignore[misc]  # h5py has no types
    """An `h5py.Dataset` that takes NumPy's indices; only what is indexed is read.

    Args:
        source: The dataset, its chunks checked as they are read.
        path: Of the file, for messages.

    Raises:
        ResultsError: On indexing: the file was closed.
        IndexError: On indexing: as NumPy raises it.
        OSError: On indexing: a chunk is damaged.
    """

    def __init__(self, source: h5py.Dataset | CheckedDataset, path: Path) -> None:
        super().__init__(source.id, readonly=True)
        self._source = source
        self._path = path

    def __getitem__(self, key: Any, /, new_dtype: DTypeLike | None = None) -> Any:
        if not self.id.valid:
            raise closed(self._path)
        per_chunk = self.chunks[0] if self.chunks else 1
        values = take(self._read, self.shape, key, itemsize=self.dtype.itemsize, rows_per_chunk=per_chunk)
        return values if new_dtype is None else values.astype(new_dtype)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as ``np.asarray`` wants it."""
        return np.asarray(self[...], dtype)

    def read_direct(self, dest: np.ndarray, source_sel: Any = ..., dest_sel: Any = ...) -> None:
        """Copy ``self[source_sel]`` to ``dest[dest_sel]``."""
        dest[... if dest_sel is None else dest_sel] = self[... if source_sel is None else source_sel]

    def _read(self, box: Box) -> np.ndarray:
        return np.asarray(self._source[box])
