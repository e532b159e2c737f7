"""Dimension names and scales, as netCDF-4 writes them, so that xarray finds them."""

from __future__ import annotations

from collections.abc import Mapping

import h5py

from jacli.store.schema import DatasetLayout

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."


def create_scales(file: h5py.File, datasets: Mapping[str, DatasetLayout]) -> None:
    """One scale without values for each dimension, at the root; they take no space for values."""
    sizes = {
        name: (size, layout.grows)
        for layout in datasets.values()
        for name, size in zip(layout.dims, layout.shape, strict=True)
    }
    for name, (size, grows) in sizes.items():
        # Big-endian float32 and the padded length are what netCDF-C itself writes.
        scale = file.create_dataset(name, (size,), ">f4", maxshape=(None,) if grows else None)
        scale.make_scale(f"{_NO_VARIABLE} {size:10d}")


def attach_scales(file: h5py.File, dataset: h5py.Dataset, dims: tuple[str, ...]) -> None:
    """Name each axis of ``dataset`` and attach the scale of that name."""
    for axis, name in enumerate(dims):
        dataset.dims[axis].label = name
        dataset.dims[axis].attach_scale(file[name])


def is_bare_dimension(dataset: h5py.Dataset) -> bool:
    """Whether ``dataset`` only names a dimension and holds no values."""
    name = dataset.attrs.get("NAME", b"") if dataset.is_scale else b""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    return text.startswith(_NO_VARIABLE)
