"""Metadata of a finished shard, read before it is merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.store.attributes import Attributes
from jacli.store.reader import open_results
from jacli.store.schema import DatasetLayout
from jacli.store.sources import as_python
from jacli.store.untrusted_file import DAMAGED, open_guarded, reading_results


@dataclass(frozen=True)
class ShardFile:
    """Metadata of a finished shard; no large array is held.

    Attributes:
        path: As it was given.
        attributes: Root attributes as Python values.
        layouts: Name -> how that dataset lies in the shard.
        sample_index: ``(b,)`` positions in the inputs.
        done: How many of its samples are done.
        complete: Whether its run ended.
        size: Bytes.
        modified: Time of its last change, in nanoseconds since 1970.
    """

    path: Path
    attributes: Attributes
    layouts: Mapping[str, DatasetLayout]
    sample_index: np.ndarray
    done: int
    complete: bool
    size: int
    modified: int

    @property
    def samples(self) -> int:
        """In this file."""
        return len(self.sample_index)

    def __str__(self) -> str:
        return str(self.path)


def read_shard(path: Path) -> ShardFile:
    """Look into a shard.

    Raises:
        ResultsError: It is not a result file.
    """
    status = path.stat()
    with open_results(path) as results, reading_results(path, *DAMAGED):
        if "sample_index" not in results:
            raise ResultsError(
                f"{path} is not a shard.",
                why="It has no dataset sample_index, which says which samples it holds.",
                hint="Compute it again.",
            )
        return ShardFile(
            path=path,
            attributes=results.attrs,
            layouts={name: _layout_of(dataset) for name, dataset in results.datasets.items()},
            sample_index=np.asarray(results["sample_index"]),
            done=int(np.count_nonzero(np.equal(results["done"], 1))),
            complete=results.complete,
            size=status.st_size,
            modified=status.st_mtime_ns,
        )


def _layout_of(dataset: h5py.Dataset) -> DatasetLayout:
    return DatasetLayout(
        shape=dataset.shape,
        dtype=dataset.dtype,
        dims=tuple(axis.label for axis in dataset.dims),
        long_name=str(as_python(dataset.attrs.get("long_name", ""))),
        units=str(as_python(dataset.attrs.get("units", ""))),
        chunks=dataset.chunks,
    )


def count_samples(path: Path) -> int:
    """Samples of a finished result, without a look at anything else: there may be a thousand of them.

    Raises:
        ResultsError: It is not a result file.
    """
    try:
        with open_guarded(path) as file:
            return int(file["done"].shape[0])
    except (OSError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise ResultsError(f"{path} cannot be read.", why=f"{str(error).splitlines()[-1]}.") from error
