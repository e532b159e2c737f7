"""Two results compared, dataset by dataset."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


def assert_same_datasets(path: Path, expected: Path) -> None:
    """The same names, shapes, types and bytes."""
    found, wanted = _datasets(path), _datasets(expected)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def _datasets(path: Path) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:

        def keep(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Dataset):
                arrays[name] = item[()]

        file.visititems(keep)
    assert arrays, path
    return arrays
