"""Lazy reader of result files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

import h5py
import numpy as np

from jacli.errors import ResultsError
from jacli.store.attributes import Attributes
from jacli.store.describe_open import describe_open
from jacli.store.indexed import IndexedDataset, Shards
from jacli.store.numpy_dataset import NumpyDataset
from jacli.store.schema import CHECKSUMS, READABLE_SCHEMAS
from jacli.store.sources import attributes_of, lost_sources, sources_of
from jacli.store.structure import check_structure, dataset_names
from jacli.store.untrusted_file import DAMAGED, closed, open_guarded, read_whole, reading_results
from jacli.untrusted.content import why_unseen

with contextlib.suppress(ImportError):
    # Registers zstd for `--compress zstd`; files without it open all the same.
    import hdf5plugin  # noqa: F401

_READ_WHOLE = frozenset({"outputs", "class_norms", "singular_values", "singular_value_error", "class_index"})
"""Small beside the Jacobian: these, and everything with one axis, come as NumPy arrays."""


Dataset = np.ndarray | NumpyDataset | IndexedDataset


class Results:
    """A result file, open for reading: ``results.jacobian[3]``, ``results["factors/left"]``.

    Small datasets come as NumPy arrays, read at each access; ``jacobian``, ``inputs`` and factors as
    `NumpyDataset`, an `h5py.Dataset` that reads what is indexed and takes NumPy's indices in any order.  Of
    a merged index, what lies in the shards comes as `IndexedDataset`, which is indexed alike.

    Attributes:
        path: As it was given.
        attrs: Root attributes as Python values; JSON stays text.
        names: Names of the datasets, without bare dimensions.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        self._file = file
        self.attrs = Attributes(path, attributes_of(file))
        self.names: tuple[str, ...] = tuple(dataset_names(file))
        self._shards = Shards(path, self.attrs)

    def __getitem__(self, name: str) -> Dataset:
        if name not in self.names:
            factors = name == "jacobian" and "factors/left" in self.names
            instead = "; the Jacobian is factors/left times factors/right" if factors else ""
            raise KeyError(
                f"{self.path} holds no dataset {name!r}; it holds {', '.join(self.names)}{instead}"
            )
        dataset = self._shards.dataset(self._open_file[name])
        if name == "near_kink" and self.attrs["schema"] == "jacli/1":
            return self._near_kink_of_schema_1()
        if dataset.ndim == 1 or name in _READ_WHOLE:
            return read_whole(self.path, dataset)
        return dataset if isinstance(dataset, IndexedDataset) else NumpyDataset(dataset, self.path)

    def __repr__(self) -> str:
        return "\n".join(describe_open(self.path, self._file, self.names, self.attrs))

    @property
    def _open_file(self) -> h5py.File:
        """The file, as long as it is open.

        Raises:
            ResultsError: It was closed.
        """
        if not self._file:
            raise closed(self.path)
        return self._file

    def _near_kink_of_schema_1(self) -> np.ndarray:
        """As of schema 2: -1 where nothing was checked, which schema 1 did not tell from 0."""
        flags = np.asarray(read_whole(self.path, self._file["near_kink"])).astype(np.int8)
        if "verified_error" in self.names:
            flags[(flags == 0) & np.isnan(self["verified_error"])] = -1
        return flags

    def __getattr__(self, name: str) -> Dataset:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(error.args[0]) from None

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(name for name in self.names if name.isidentifier())]

    def __len__(self) -> int:
        """Number of samples."""
        return int(self._open_file["done"].shape[0])

    @property
    def datasets(self) -> Mapping[str, h5py.Dataset | IndexedDataset]:
        """Name -> dataset as it lies in the file or its shards, nothing read."""
        return MappingProxyType({name: self._shards.dataset(self._open_file[name]) for name in self.names})

    @property
    def complete(self) -> bool:
        """Whether the run that wrote the file has finished."""
        return self.attrs.flag("complete")

    def json(self, name: str) -> dict[str, Any]:
        """A root attribute that holds JSON: ``config``, ``plan``.

        Raises:
            ResultsError: It is damaged or not there.
        """
        return self.attrs.json_object(name)

    def close(self) -> None:
        """Close the file; datasets taken from it cannot be read afterwards."""
        self._shards.close()
        self._file.close()

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class UnreadableError(ResultsError):
    """An HDF5 file that cannot be opened, whatever it holds."""


Kind = TypeVar("Kind", bound=Results)


def open_results(path: str | os.PathLike[str]) -> Results:
    """Open a result file; also an unfinished ``OUT.part``, whose ``done`` says how far it is.

    Raises:
        ResultsError: No such file, damaged, not a jacli result, or of a schema that this version cannot read.
    """
    return open_as(Results, path)


def open_as(kind: type[Kind], path: str | os.PathLike[str]) -> Kind:
    """`open_results` with a reader of that kind."""
    try:
        path = Path(path)
    except TypeError as error:
        raise ResultsError(
            f"{type(path).__name__} is not a result file.",
            why="jacli.open takes the path of a file that `jacli compute` or jacli.compute wrote.",
            hint='For example: jacli.open("out.h5").',
        ) from error
    if not os.path.isfile(path) and (os.path.isdir(path) or not os.path.exists(path)):
        what = "is a folder" if os.path.isdir(path) else "no such file"
        why = why_unseen(path) or ""
        raise ResultsError(f"{path}: {what}.", why=why, hint="Give a result file of `jacli compute`.")
    try:
        file = open_guarded(path)
    except OSError as error:
        if not h5py.is_hdf5(path):
            raise _not_results(path, "It is not an HDF5 file.") from error
        raise UnreadableError(
            f"{path} cannot be read.",
            why=f"{str(error).splitlines()[-1]}.",
            hint="If it is being written, wait; otherwise it is damaged or truncated: copy or compute it "
            "again.",
        ) from error
    try:
        _check_schema(path, file)
        return kind(path, file)
    except ResultsError:
        file.close()
        raise
    except Exception as error:  # the metadata of a damaged file fails in as many ways as it has bytes
        file.close()
        raise ResultsError(
            f"{path} cannot be read.",
            why=f"Its table of contents is damaged: {error or type(error).__name__}.",
            hint="Copy it again, or compute it again.",
        ) from error


def describe_results(path: str | Path) -> dict[str, object]:
    """Description of a result file for `jacli inspect`; made of JSON's types only.

    Returns:
        ``path``, ``schema``, ``complete``, ``samples``, ``samples_done``, ``datasets`` (name -> shape, dtype,
        dims, bytes uncompressed, bytes_stored; without the checksums) and ``attributes`` (the provenance).
        Of a merged file also ``shards`` (how many), and of an index ``in_shards`` (which datasets) and
        ``lost_shards``.
    """
    with open_results(path) as results, reading_results(results.path, *DAMAGED):
        datasets = {
            name: _describe_dataset(results._file[name])
            for name in results.names
            if not name.startswith(CHECKSUMS)
        }
        listed_above = {"schema", "complete", "sources"}
        return {
            "path": str(path),
            "schema": str(results.attrs["schema"]),
            "complete": results.complete,
            "samples": len(results),
            "samples_done": int(np.count_nonzero(results["done"])),
            **_describe_sources(results),
            "datasets": datasets,
            "attributes": {name: value for name, value in results.attrs.items() if name not in listed_above},
        }


def _describe_sources(results: Results) -> dict[str, object]:
    sources = sources_of(results.path, results.attrs)
    if not sources:
        return {}
    indexed = [name for name in results.names if results._file[name].is_virtual]
    lost = lost_sources(results.path, sources) if indexed else []
    return {"shards": len(sources), "in_shards": indexed, "lost_shards": lost}


def _describe_dataset(dataset: h5py.Dataset) -> dict[str, object]:
    return {
        "shape": list(dataset.shape or ()),
        "dtype": dataset.dtype.name,
        "dims": [axis.label for axis in dataset.dims],
        "bytes": int(dataset.nbytes),
        "bytes_stored": int(dataset.id.get_storage_size()),
    }


def _check_schema(path: Path, file: h5py.File) -> None:
    schema = file.attrs.get("schema")
    if not isinstance(schema, str) or not schema.startswith("jacli/"):
        raise _not_results(path, "It is an HDF5 file without the attribute `schema` of jacli.")
    if schema not in READABLE_SCHEMAS:
        raise ResultsError(
            f"{path} has schema {schema}.",
            why=f"This version of jacli reads {' and '.join(READABLE_SCHEMAS)}.",
            hint="Read it with the version named in its attribute `jacli_version`, or compute it again.",
        )
    missing = [name for name in ("done",) if name not in file] + [
        name for name in ("complete",) if name not in file.attrs
    ]
    if missing:
        raise _not_results(path, f"It claims schema {schema} but lacks {', '.join(missing)}.")
    check_structure(path, file)


def _not_results(path: Path, why: str) -> ResultsError:
    return ResultsError(
        f"{path} is not a result file of jacli.", why=why, hint="Give a file that `jacli compute` wrote."
    )
