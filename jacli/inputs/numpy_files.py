"""NumPy arrays and archives; nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from jacli.errors import InputsError
from jacli.inputs.source import StoredArray, Wanted, choose_key, refuse_key
from jacli.untrusted.zip_archive import check_zip


def load_npy(path: Path, wanted: Wanted) -> StoredArray:
    """A .npy file, memory-mapped.

    >>> load_npy(Path("sample_models/digits.npy"), Wanted()).shape
    (64, 1, 8, 8)
    """
    refuse_key(path, wanted, why="A NumPy array has no name.")
    # Python objects, a single number and no samples cannot be mapped; `open_inputs` refuses them by name.
    with path.open("rb") as file:
        shape, dtype = _read_header(file)
    if dtype.kind == "O" or not shape or 0 in shape:
        return StoredArray(None, shape, dtype, lambda start, stop: np.empty(0))
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    return StoredArray(None, shape, dtype.newbyteorder("="), lambda start, stop: rows[start:stop])


def load_npz(path: Path, wanted: Wanted) -> StoredArray:
    """One member of a .npz file; only that member is read, whole, when its first rows are.

    >>> np.savez("two.npz", train=np.zeros((5, 3)), test=np.zeros((2, 3)))
    >>> load_npz(Path("two.npz"), Wanted("test")).shape
    (2, 3)
    """
    with path.open("rb") as file:
        members = check_zip(file, checksums=False)  # reading a member compares its checksum
        headers = {}
        with zipfile.ZipFile(file) as archive:
            for name in members:
                with archive.open(name) as member:
                    headers[name.removesuffix(".npy")] = _read_header(member)
    chosen = choose_key(path, {name: shape for name, (shape, _) in headers.items()}, wanted)
    shape, dtype = headers[chosen]
    declared, there = math.prod(shape) * dtype.itemsize, members[f"{chosen}.npy"].file_size
    if declared > there and not dtype.hasobject:  # objects are refused by `open_inputs`
        raise InputsError(
            f"{path}[{chosen}] is damaged.",
            why=f"Its header says {declared:,} bytes of shape {shape}, and it has {there:,}.",
            hint="Copy it again.",
        )

    @cache
    def read_member() -> np.ndarray:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[chosen])

    return StoredArray(chosen, shape, dtype.newbyteorder("="), lambda start, stop: read_member()[start:stop])


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype, without the values."""
    version = np.lib.format.read_magic(file)
    # Version 3 differs from 2 in the text encoding of field names alone.
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype
