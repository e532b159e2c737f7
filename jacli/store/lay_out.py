"""A new file's datasets, empty: what is not written reads as NaN, or 0 or -1 for whole numbers."""

from __future__ import annotations

from collections.abc import Mapping

import h5py

from jacli.errors import UsageError
from jacli.store.dimensions import attach_scales, create_scales
from jacli.store.schema import DatasetLayout

CHECKSUMMED_METADATA = ("v110", "latest")
"""Versions of the file format: from HDF5 1.10 on every piece of metadata has a checksum of its own."""


def lay_out(file: h5py.File, layouts: Mapping[str, DatasetLayout], filters: Mapping[str, object]) -> None:
    """Create every dataset, with its dimensions' names and scales.

    >>> import numpy as np
    >>> layout = DatasetLayout((4, 3), np.dtype("f4"), ("batch", "n_classes"), "outputs")
    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     lay_out(file, {"outputs": layout}, {})
    ...     [axis.label for axis in file["outputs"].dims]
    ['batch', 'n_classes']

    Args:
        file: An empty file.
        layouts: Name -> layout.
        filters: Of the chunked ones, see `filters_of`.
    """
    create_scales(file, layouts)
    for name, layout in layouts.items():
        dataset = file.create_dataset(
            name,
            layout.shape,
            layout.dtype,
            maxshape=(None,) if layout.grows else None,
            chunks=layout.chunks,
            fillvalue=layout.fill_value,
            **(filters if layout.chunks and not layout.grows else {}),
        )
        attach_scales(file, dataset, layout.dims)
        dataset.attrs["long_name"] = layout.long_name
        if layout.units:
            dataset.attrs["units"] = layout.units


def filters_of(compress: str) -> Mapping[str, object]:
    """Arguments of `h5py.Group.create_dataset`; shuffled bytes are what makes floats compress at all.

    >>> filters_of("none"), filters_of("gzip")
    ({}, {'compression': 'gzip', 'shuffle': True})

    Raises:
        UsageError: zstd without hdf5plugin.
    """
    if compress == "none":
        return {}
    if compress == "zstd":
        try:
            import hdf5plugin
        except ImportError:
            raise UsageError(
                "--compress zstd needs the package hdf5plugin.",
                why="HDF5 has no zstd of its own.",
                hint="pip install 'jacli[compress]'",
            ) from None
        return {**hdf5plugin.Zstd(), "shuffle": True}
    return {"compression": compress, "shuffle": True}
