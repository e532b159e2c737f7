"""Writes a result file block by block; nobody ever meets a half-written ``OUT``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Protocol

import h5py
import numpy as np

from jacli.errors import UsageError
from jacli.store.dimensions import attach_scales, create_scales
from jacli.store.place import check_place, check_room, create_part, disk_error, part_path, publish
from jacli.store.schema import AFTERWARDS, SCHEMA, DatasetLayout, ResultLayout
from jacli.store.sink import FileSink


class Rows(Protocol):
    """What is needed of an array to write it: an `np.ndarray`, or one computed piece by piece when asked."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, piece: Any, /) -> Any:
        """The piece of that tuple of slices, one an axis, as an ``np.ndarray``."""
        ...


class ResultWriter:
    """A result file under way: `create`, `write_block` ..., `finish`.

    As a context manager it removes the unfinished file when an exception leaves the block, and also
    when the block ends without `finish`.

    Attributes:
        out: The final path.
        part: The path until then.
        overflowed: Finite values that a narrower dtype in the file turned into infinity so far.
    """

    def __init__(
        self, out: Path, layout: ResultLayout, sink: FileSink, file: h5py.File, *, overwrite: bool
    ) -> None:
        self.out = out
        self.part = part_path(out)
        self.overflowed = 0
        self._layouts = layout.datasets()
        self._overwrite = overwrite
        self._sink = sink
        self._file = file
        self._open = True

    @classmethod
    def create(
        cls, out: Path, layout: ResultLayout, attributes: Mapping[str, object], *, overwrite: bool
    ) -> ResultWriter:
        """Lay out every dataset in ``OUT.part``; no sample is done yet, and what is not written reads as NaN.

        Raises:
            OutputError: ``out`` exists (without ``overwrite``), its ``.part`` exists, the folder is missing
                or cannot be written, or the disk has less room than the values need.
            UsageError: zstd without hdf5plugin.
        """
        filters = _filters(layout.compress)
        check_place(out, overwrite=overwrite)
        check_room(out, layout)
        # HDF5 never opens the path itself: its mode "w" truncates a file before it finds that file locked.
        sink = create_part(out)
        writer = cls(out, layout, sink, h5py.File(sink, "w"), overwrite=overwrite)
        try:
            with writer._watching():
                writer._lay_out(filters)
            writer.set_attributes({"schema": SCHEMA, **attributes, "complete": False})
        except BaseException:
            writer.abort()
            raise
        return writer

    def _lay_out(self, filters: Mapping[str, object]) -> None:
        create_scales(self._file, self._layouts)
        for name, layout in self._layouts.items():
            dataset = self._file.create_dataset(
                name,
                layout.shape,
                layout.dtype,
                chunks=layout.chunks,
                fillvalue=np.nan if layout.dtype.kind == "f" else 0,
                **(filters if layout.chunks else {}),
            )
            attach_scales(self._file, dataset, layout.dims)
            dataset.attrs["long_name"] = layout.long_name
            if layout.units:
                dataset.attrs["units"] = layout.units

    def write_block(self, start: int, arrays: Mapping[str, Rows]) -> None:
        """Write rows ``start : start + b`` of every per-sample dataset, flush, then mark them done.

        Args:
            start: First row.
            arrays: Name -> (b, ...), all datasets with a batch axis but those of `AFTERWARDS`. Any strides:
                pieces of one chunk are made contiguous and cast in turn, so nothing the size of the block is
                copied. Nor need it exist: anything that is `Rows` will do, asked once for each chunk.

        Raises:
            OutputError: The disk is full, or failed.
            ValueError: Names or shapes are not the layout's.
        """
        expected = {name for name, layout in self._layouts.items() if layout.dims[0] == "batch"} - AFTERWARDS
        if set(arrays) != expected:
            raise ValueError(f"expected exactly the datasets {sorted(expected)}, got {sorted(arrays)}")
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise ValueError(f"expected the same number of rows in every array, got {sorted(lengths)}")
        stop = start + lengths.pop()
        with self._watching():
            for name, array in arrays.items():
                self._write_rows(name, start, array)
            self._file.flush()
        with self._watching():
            self._file["done"][start:stop] = 1
            self._file.flush()

    def _write_rows(self, name: str, start: int, array: Rows) -> None:
        layout = self._layouts[name]
        if array.shape[1:] != layout.shape[1:] or start + len(array) > layout.shape[0]:
            raise ValueError(f"{name}: rows {start}+ of shape {array.shape} do not fit into {layout.shape}")
        dataset = self._file[name]
        for piece in _pieces(layout, start, start + len(array)):
            values = array[slice(piece[0].start - start, piece[0].stop - start), *piece[1:]]
            dataset[piece] = self._cast(values, layout.dtype)

    def _cast(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = _copy_contiguous(values, dtype)
        if dtype.kind == "f" and dtype.itemsize < values.dtype.itemsize:
            self.overflowed += int(np.count_nonzero(np.isinf(cast)) - np.count_nonzero(np.isinf(values)))
        return cast

    def write_static(self, name: str, array: np.ndarray) -> None:
        """Write a dataset that belongs to the whole run: ``class_index`` (k,), the same for all samples."""
        with self._watching():
            self._file[name][...] = array
            self._file.flush()

    @property
    def datasets(self) -> Mapping[str, h5py.Dataset]:
        """Name -> dataset of the open file, so that it can be read back before it is published."""
        return MappingProxyType({name: self._file[name] for name in self._layouts})

    def write_recheck(self, row: int, error: float, near_kink: bool) -> None:
        """Write what the recheck found of one sample; NaN and 0 where it is never called."""
        with self._watching():
            self._file["verified_error"][row] = error
            self._file["near_kink"][row] = near_kink
            self._file.flush()

    def set_attributes(self, attributes: Mapping[str, object]) -> None:
        """Set root attributes; dicts, lists and tuples become JSON text, None is left out."""
        with self._watching():
            for name, value in attributes.items():
                if value is not None:
                    self._file.attrs[name] = _as_attribute(value)
            self._file.flush()

    def finish(self) -> None:
        """Mark the file complete, wait for the disk, and give it its final name.

        Raises:
            OutputError: The disk is full; or ``out`` appeared meanwhile: the finished file stays in ``part``.
        """
        self.set_attributes({"complete": True})
        with self._watching():
            self._file.close()
            self._sink.sync()
        self._open = False
        self._sink.close()
        publish(self.part, self.out, overwrite=self._overwrite)

    def abort(self) -> None:
        """Close and remove the unfinished file; does nothing after `finish`."""
        if not self._open:
            return
        self._open = False
        # The file is thrown away: an error on the way out must not hide the one that led here.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            self._file.close()
        self._sink.close()
        self.part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Raise the system's error that the sink remembers, whatever HDF5 made of it."""
        try:
            yield
        except (OSError, RuntimeError):
            if self._sink.error is None:
                raise
        error = self._sink.error
        if error is not None:
            self.abort()
            raise disk_error(self.out, error) from error

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def _pieces(layout: DatasetLayout, start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """Regions of rows ``start:stop``, one for each chunk they touch."""
    steps = layout.chunks or (max(1, stop - start), *layout.shape[1:])
    first = start // steps[0] * steps[0] if layout.chunks else start
    counts = [
        range(first, stop, steps[0]),
        *(range(0, size, step) for size, step in zip(layout.shape[1:], steps[1:], strict=True)),
    ]
    for corner in np.ndindex(*(len(count) for count in counts)):
        begins = [count[at] for count, at in zip(counts, corner, strict=True)]
        ends = [
            min(begin + step, end)
            for begin, step, end in zip(begins, steps, (stop, *layout.shape[1:]), strict=True)
        ]
        yield (
            slice(max(begins[0], start), ends[0]),
            *(slice(b, e) for b, e in zip(begins[1:], ends[1:], strict=True)),
        )


_TILE = 64


def _copy_contiguous(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`values` in C order and of `dtype`; itself where it is so already.

    Autograd has the class axis first and the file has it last. A plain copy of such a view walks the
    source in strides as large as a sample; in tiles of 64 classes each cache line is used while it is
    there: 2.8 against 0.3 GB/s for ImageNet's shape.
    """
    if values.ndim == 0 or values.strides[-1] == values.itemsize:
        return np.ascontiguousarray(values, dtype)
    copied = np.empty(values.shape, dtype)
    for start in range(0, values.shape[-1], _TILE):
        copied[..., start : start + _TILE] = values[..., start : start + _TILE]
    return copied


def _filters(compress: str) -> Mapping[str, object]:
    """Arguments of `h5py.Group.create_dataset`; shuffled bytes are what makes floats compress at all."""
    if compress == "none":
        return {}
    if compress == "zstd":
        try:
            import hdf5plugin
        except ImportError:
            raise UsageError(
                "--compress zstd needs the package hdf5plugin.",
                why="HDF5 has no zstd of its own.",
                todo="pip install 'jacli[compress]'",
            ) from None
        return {**hdf5plugin.Zstd(), "shuffle": True}
    return {"compression": compress, "shuffle": True}


def _as_attribute(value: object) -> object:
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value)
    if isinstance(value, str):
        # A path or a command line may hold bytes that are no text; HDF5 stores text.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
