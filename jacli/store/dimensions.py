"""Dimension names and scales, as netCDF-4 writes them, so that xarray finds them."""

from __future__ import annotations

from collections.abc import Mapping

import h5py

from jacli.store.schema import DatasetLayout

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."


def create_scales(file: h5py.File, datasets: Mapping[str, DatasetLayout]) -> None:
    """One scale without values for each dimension, at the root; they take no space for values.

    >>> import numpy as np
    >>> layout = DatasetLayout((4, 3), np.dtype("f4"), ("batch", "n_classes"), "outputs")
    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     create_scales(file, {"outputs": layout})
    ...     {name: scale.shape for name, scale in file.items()}
    {'batch': (4,), 'n_classes': (3,)}
    """
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
    """Name each axis of ``dataset`` and attach the scale of that name.

    >>> import numpy as np
    >>> layout = DatasetLayout((4,), np.dtype("f4"), ("batch",), "norms")
    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     create_scales(file, {"norm": layout})
    ...     norm = file.create_dataset("norm", (4,), "f4")
    ...     attach_scales(file, norm, layout.dims)
    ...     norm.dims[0].label, norm.dims[0][0].name
    ('batch', '/batch')
    """
    for axis, name in enumerate(dims):
        dataset.dims[axis].label = name
        dataset.dims[axis].attach_scale(file[name])


def is_bare_dimension(dataset: h5py.Dataset) -> bool:
    """Whether ``dataset`` only names a dimension and holds no values.

    >>> import numpy as np
    >>> layout = DatasetLayout((4,), np.dtype("f4"), ("batch",), "norms")
    >>> with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
    ...     create_scales(file, {"norm": layout})
    ...     is_bare_dimension(file["batch"]), is_bare_dimension(file.create_dataset("norm", (4,), "f4"))
    (True, False)
    """
    name = dataset.attrs.get("NAME", b"") if dataset.is_scale else b""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    return text.startswith(_NO_VARIABLE)
