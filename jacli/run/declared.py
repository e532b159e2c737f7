"""Compares the sizes a result file declares with the bytes it has: HDF5 gives fill values without end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from jacli.errors import ResultsError
from jacli.store.indexed import IndexedDataset
from jacli.untrusted.content import MAX_EXPANSION
from jacli.untrusted.hdf5_guard import examine_hdf5


def check_declared(path: Path, batch: int, stored: Mapping[str, h5py.Dataset | IndexedDataset]) -> None:
    """Refuse more samples, or longer rows, than the file can hold: HDF5 gives fill values without end."""
    there = examine_hdf5(path).bytes
    if batch > there // 4 + 2**20:  # a sample has at least a number
        raise _bomb(path, f"It declares {batch:,} samples in {there:,} bytes.")
    for key, values in stored.items():
        row = math.prod(values.shape[1:]) * np.dtype(np.float64).itemsize
        if row > there + MAX_EXPANSION:
            raise _bomb(path, f"Its {key} declares {row:,} bytes per sample; the file has {there:,}.")


def check_work(path: Path, jacobian: h5py.Dataset, done: NDArray[np.bool_]) -> None:
    """Refuse to compute from numbers that are not there: gzip packs at most 1,032 bytes into one."""
    there = examine_hdf5(path).bytes
    declared = jacobian.nbytes // max(1, len(done)) * int(done.sum())
    if declared > 1032 * (there + 2**20):
        raise _bomb(path, f"Its Jacobians declare {declared:,} bytes; the file has {there:,}.")


def _bomb(path: Path, why: str) -> ResultsError:
    return ResultsError(f"{path} is damaged or malicious.", why=why, hint="Compute it again.")
