"""Result files as other versions or other hands would have written them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from jacli.store.batches import batch_bounds, checksum_of
from jacli.store.schema import CHECKSUMS


def sign_again(file: h5py.File) -> None:
    """Make the checksums those of what is in the file now, as a run that computed it would have."""
    done = int(np.count_nonzero(file["done"][...]))
    bounds = batch_bounds(file["batch_start"][...], done)
    for name in _checksums(file):
        dataset = file[name.removeprefix(CHECKSUMS)]
        file[name][...] = [checksum_of(dataset, start, stop) for start, stop in bounds]


def as_schema_1(path: str | Path) -> None:
    """Turn a file into one of schema jacli/1, which told less; one that is so already stays."""
    with h5py.File(path, "r+") as file:
        if file.attrs["schema"] == "jacli/1":
            return
        file.attrs["schema"] = "jacli/1"
        near_kink = file["near_kink"][...]
        for name in ("near_kink", "batch_start", CHECKSUMS.rstrip("/"), "batches"):
            del file[name]
        file["near_kink"] = (near_kink == 1).astype(np.uint8)
        file["near_kink"].dims[0].attach_scale(file["batch"])
        file["near_kink"].dims[0].label = "batch"


def _checksums(file: h5py.File) -> list[str]:
    names: list[str] = []
    file[CHECKSUMS].visititems(
        lambda name, found: names.append(CHECKSUMS + name) if isinstance(found, h5py.Dataset) else None
    )
    return names
