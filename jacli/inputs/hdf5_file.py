"""HDF5: the key is the path of a dataset; a jacli result file gives its ``inputs``."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import h5py

from jacli.errors import InputsError
from jacli.inputs.source import StoredArray, Wanted, choose_key
from jacli.untrusted.hdf5_chunks import checked
from jacli.untrusted.hdf5_guard import examine_hdf5

with contextlib.suppress(ImportError):
    # Registers the filters of files compressed with zstd, blosc, ...; HDF5 itself knows gzip and lzf.
    import hdf5plugin  # noqa: F401


def load_hdf5(path: Path, wanted: Wanted) -> StoredArray:
    """One dataset of an HDF5 file, read in slices.

    >>> with h5py.File("x.h5", "w") as file:
    ...     file["group/x"] = [[1.0, 2.0]]
    >>> stored = load_hdf5(Path("x.h5"), Wanted("/group/x"))
    >>> stored.key, stored.shape
    ('group/x', (1, 2))
    """
    findings = examine_hdf5(path)
    if findings.problem is not None:
        raise InputsError(
            f"{path} is damaged or malicious.", why=findings.problem, hint="Copy or download it again."
        )
    file = h5py.File(path, "r")
    try:
        shapes = _list_datasets(file)
        key = wanted.key.strip("/") if wanted.key is not None else None
        if key is None and str(file.attrs.get("schema", "")).startswith("jacli/"):
            key = "inputs"
        chosen = choose_key(path, shapes, replace(wanted, key=key))
        dataset = checked(file[chosen])
        return StoredArray(
            chosen,
            dataset.shape,
            dataset.dtype.newbyteorder("="),
            lambda start, stop: dataset[start:stop],
            file.close,
            file_bytes=findings.bytes,
        )
    except BaseException:
        file.close()
        raise


def _list_datasets(file: h5py.File) -> dict[str, tuple[int, ...]]:
    """Names and shapes, without dimension scales and empty datasets."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None and not item.is_scale:
            shapes[name] = tuple(int(size) for size in item.shape)

    file.visititems(note)
    return shapes
