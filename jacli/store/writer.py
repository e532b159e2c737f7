"""Writes a result file batch by batch; nobody ever meets a half-written ``OUT``, and no batch is lost."""

from __future__ import annotations

import contextlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

import h5py
import numpy as np

from jacli.durable.sink import FileSink
from jacli.errors import OutputError
from jacli.store.attributes import Attributes
from jacli.store.batches import BatchRecord
from jacli.store.lay_out import CHECKSUMMED_METADATA, filters_of, lay_out
from jacli.store.paths import (
    cannot_write,
    check_place,
    check_room,
    disk_error,
    new_part_path,
    not_continued,
    part_exists,
    part_path,
    publish,
    remove_part,
    rename_to_new,
    tidy,
)
from jacli.store.pieces import Rows, contiguous, pieces
from jacli.store.schema import AFTERWARDS, SCHEMA, DatasetLayout, ResultLayout
from jacli.store.sources import attributes_of, attributes_of_done
from jacli.store.unfinished_file import layouts_of, open_unfinished
from jacli.store.uninterrupted import UninterruptedDataset, uninterrupted
from jacli.store.untrusted_file import DAMAGED, read_whole, reading_results
from jacli.untrusted.hdf5_chunks import checked

_COMMIT_SHARE = 0.1
"""Part of the time that commits may take: each waits for the disk three times."""
_GIVEN_UP_BYTES = 64 * 2**20
"""A batch beyond this may be given up halfway; what came before is committed first."""


class WriteCancelled(Exception):
    """Writing a batch was stopped halfway, as asked."""


class ResultWriter:
    """A result file under way: `create` or `reopen`, `write_batch` ..., `finish`.

    It is a context manager.  When the block ends without `finish`, the finished samples stay in ``OUT.part``
    for `reopen`; where there are none, nothing stays.  The caller holds the `RunLock`.

    Attributes:
        out: The final path.
        part: The path until then.
        overflowed: Finite values that a narrower dtype in the file turned into infinity so far.
        written: Samples that are in the file, up to the last batch.
        committed: Of these, how many are there for good.
    """

    def __init__(self, out: Path, sink: FileSink, file: h5py.File, *, overwrite: bool, created: bool) -> None:
        self.out = out
        self.part = part_path(out)
        self.overflowed = 0
        self.written = 0
        self.committed = 0
        self._layouts: dict[str, DatasetLayout] = {}
        self._overwrite = overwrite
        self._created = created
        self._sink = sink
        self._file = file
        self._batches = BatchRecord(file)
        self._open = True
        self._whole = True  # no batch is half written
        self._commit_took, self._commit_ended = 0.0, 0.0

    @classmethod
    @uninterrupted()
    def create(
        cls, out: Path, layout: ResultLayout, attributes: Mapping[str, object], *, overwrite: bool
    ) -> ResultWriter:
        """Lay out every dataset in ``OUT.part``; no sample is done yet, and what is not written reads as NaN.

        Raises:
            OutputError: ``out`` exists (without ``overwrite``), its ``.part`` exists, the folder is missing
                or cannot be written, or the disk has less room than the values need.
            UsageError: zstd without hdf5plugin.
        """
        filters = filters_of(layout.compress)
        check_place(out, overwrite=overwrite)
        part = part_path(out)
        if part.exists():
            raise part_exists(out)
        check_room(out, layout)
        tidy(out)
        try:
            # HDF5 never opens the path itself: its mode "w" truncates a file before it finds it locked.
            sink = FileSink(new_part_path(out))
        except OSError as error:
            raise cannot_write(out, error) from error
        file = h5py.File(sink, "w", libver=CHECKSUMMED_METADATA)
        writer = cls(out, sink, file, overwrite=overwrite, created=True)
        try:
            writer._layouts = layout.datasets()
            with writer._watching():
                lay_out(writer._file, writer._layouts, filters)
            writer.set_attributes({"schema": SCHEMA, **attributes, "complete": False})
            with writer._watching():
                sink.first_commit(part, rename_to_new)
        except BaseException:
            writer.close()
            raise
        return writer

    @classmethod
    @uninterrupted()
    def reopen(cls, out: Path, *, overwrite: bool) -> ResultWriter:
        """The unfinished file of an earlier run as its last commit left it; `expect` says what it must hold.

        Raises:
            OutputError: It cannot be read as one.
        """
        part = part_path(out)
        sink, file = open_unfinished(part)
        writer = cls(out, sink, file, overwrite=overwrite, created=False)
        try:
            done = np.asarray(read_whole(part, checked(file["done"]))) == 1
            writer.committed = writer.written = len(done) if done.all() else int(np.argmin(done))
            writer.overflowed = attributes_of_done(part, file["done"]).count("overflowed")
            writer._batches.cut(writer.committed)
        except BaseException as error:
            writer.close()
            if isinstance(error, (OSError, *DAMAGED)):
                raise not_continued(part, f"{(str(error).splitlines() or [''])[-1]}") from error
            raise
        return writer

    @uninterrupted()
    def expect(self, layout: ResultLayout) -> None:
        """Check that a reopened file holds these datasets.

        Raises:
            OutputError: It does not.
        """
        filters_of(layout.compress)
        self._layouts = layouts_of(self.part, self._file, layout.datasets())

    @property
    def n_samples(self) -> int:
        """In the whole file."""
        return int(self._file["done"].shape[0])

    @property
    @uninterrupted()
    def attributes(self) -> Attributes:
        """Root attributes; JSON stays text."""
        with reading_results(self.part, *DAMAGED):
            return Attributes(self.part, attributes_of(self._file))

    @property
    @uninterrupted()
    def inputs_sha256(self) -> str:
        """SHA-256 of the rows of the finished samples, as given to `write_batch`; empty if there are none."""
        recorded = attributes_of_done(self.part, self._file["done"])
        return (recorded.text("inputs_sha256") or "").strip()

    def write_batch(
        self,
        start: int,
        arrays: Mapping[str, Rows],
        *,
        inputs_sha256: str = "",
        given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write rows ``start : start + b`` of every per-sample dataset, then mark them done.

        Args:
            start: First row.
            arrays: Name -> (b, ...), all datasets with a batch axis but those of `AFTERWARDS`. Any strides:
                pieces of one chunk are made contiguous and cast in turn, so nothing the size of the batch is
                copied. Nor need it exist: anything that is `Rows` will do, asked once for each chunk.
            inputs_sha256: Of the rows of all samples up to this batch's last.
            given_up: Asked before each piece of a large batch: whether to stop halfway.

        Raises:
            OutputError: The disk is full, or failed.
            WriteCancelled: As asked; the file is then to be closed.
            ValueError: Names or shapes are not the layout's.
        """
        expected = {name for name, layout in self._layouts.items() if layout.dims[0] == "batch"} - AFTERWARDS
        if set(arrays) != expected:
            raise ValueError(f"expected exactly the datasets {sorted(expected)}, got {sorted(arrays)}")
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise ValueError(f"expected the same number of rows in every array, got {sorted(lengths)}")
        for name, array in arrays.items():
            layout = self._layouts[name]
            if array.shape[1:] != layout.shape[1:] or start + len(array) > layout.shape[0]:
                raise ValueError(
                    f"{name}: rows {start}+ of shape {array.shape} do not fit into {layout.shape}"
                )
        stop = start + lengths.pop()
        nbytes = sum(self._layouts[name].nbytes_of(len(array)) for name, array in arrays.items())
        large = nbytes > _GIVEN_UP_BYTES
        if large:
            self.commit()
        with self._watching():
            self._whole = False
            asked = given_up if large else lambda: False
            checksums = {name: self._write_rows(name, start, array, asked) for name, array in arrays.items()}
            done = self._file["done"]
            done[start:stop] = 1
            # Of the samples that are done: what a process that goes on cannot know.
            done.attrs.modify("overflowed", np.int64(self.overflowed))
            done.attrs.modify("inputs_sha256", np.bytes_(inputs_sha256.ljust(64).encode()))
            self._file.flush()
            self._whole = True
        self._batches.add(start, checksums)
        self.written = stop

    def _write_rows(self, name: str, start: int, array: Rows, given_up: Callable[[], bool]) -> int:
        """Write them, and give the checksum of their bytes in C order, which is the order of `pieces`."""
        checksum = 0
        layout = self._layouts[name]
        dataset = self._file[name]
        direct = layout.chunks is not None and dataset.id.get_create_plist().get_nfilters() == 0
        for piece in pieces(layout, start, start + len(array)):
            if given_up():
                raise WriteCancelled
            values = array[slice(piece[0].start - start, piece[0].stop - start), *piece[1:]]
            cast = self._cast(values, layout.dtype)
            checksum = zlib.crc32(cast.data, checksum)
            if direct and cast.shape == layout.chunks:
                # A whole chunk, as it is: without HDF5's own copy, 2.5 times as fast (FINDINGS section 4).
                dataset.id.write_direct_chunk(tuple(s.start for s in piece), cast)
            else:
                dataset[piece] = cast
        return checksum

    def _cast(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        with np.errstate(over="ignore"):
            cast = contiguous(values, dtype)
        if dtype.kind == "f" and dtype.itemsize < values.dtype.itemsize:
            self.overflowed += int(np.count_nonzero(np.isinf(cast)) - np.count_nonzero(np.isinf(values)))
        return cast

    def commit(self) -> None:
        """Make the batches written so far part of the file for good.

        Raises:
            OutputError: The disk is full, or failed.
        """
        if self.committed == self.written:
            return
        began = time.monotonic()
        with self._watching():
            self._batches.save()
            self._file.flush()
            self._sink.commit()
        self._commit_ended = time.monotonic()
        self._commit_took = self._commit_ended - began
        self.committed = self.written

    @property
    def seconds_to_commit(self) -> float | None:
        """When a commit would take little of the time, if it takes as long as the last one; None: no need."""
        if self.committed == self.written:
            return None
        passed = time.monotonic() - self._commit_ended
        return max(0.0, self._commit_took / _COMMIT_SHARE - passed)

    @uninterrupted()
    def write_static(self, name: str, array: np.ndarray) -> None:
        """Write a dataset that belongs to the whole run: ``class_index`` (k,), the same for all samples."""
        with self._watching():
            self._file[name][...] = array
            self._file.flush()

    @property
    def datasets(self) -> Mapping[str, UninterruptedDataset]:
        """Name -> dataset of the open file, so that it can be read back before it is published."""
        with uninterrupted(), self._watching():
            self._batches.save()
            return MappingProxyType({name: UninterruptedDataset(self._file[name]) for name in self._layouts})

    @uninterrupted()
    def write_recheck(self, row: int, error: float, near_kink: bool) -> None:
        """Write what the recheck found of one sample; NaN and -1 where it is never called."""
        with self._watching():
            self._file["verified_error"][row] = error
            self._file["near_kink"][row] = near_kink
            self._file.flush()

    @uninterrupted()
    def set_attributes(self, attributes: Mapping[str, object]) -> None:
        """Set root attributes; dicts, lists and tuples become JSON text, None is left out."""
        with self._watching():
            for name, value in attributes.items():
                if value is not None:
                    self._file.attrs[name] = _as_attribute(value)
            self._file.flush()

    @uninterrupted(forget=True)
    def finish(self, published: Callable[[], None] = lambda: None) -> None:
        """Mark the file complete, wait for the disk, and give it its final name.

        A signal that comes meanwhile comes too late to stop anything.

        Args:
            published: Called when the file has its name, before signals are let through again.

        Raises:
            OutputError: The disk is full; or ``out`` appeared meanwhile: the finished file stays in ``part``.
        """
        with self._watching():
            self._batches.save()
        self.set_attributes({"complete": True})
        with self._watching():
            self._file.close()
            self._sink.commit()
            self._sink.remove_journal()
        self._open = False
        self._sink.close()
        publish(self.part, self.out, overwrite=self._overwrite)
        published()

    @uninterrupted()
    def close(self) -> None:
        """Close the unfinished file with the samples that are finished; without one, remove it.

        Does nothing after `finish`.
        """
        if not self._open:
            return
        self._open = False
        # An error on the way out must not hide the one that led here.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            if self._whole:
                self._batches.save()
            self._file.close()
        if self._whole and self._sink.error is None:
            self._sink.commit()
            if self._sink.error is None:
                self.committed = self.written
        self._sink.close()
        if self._created and self.committed == 0:
            with contextlib.suppress(OutputError):
                remove_part(self.out)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Raise the system's error that the sink remembers, whatever HDF5 made of it.

        Where there is none, HDF5 has met damage in a file that it was given.
        """
        try:
            yield
        except (OSError, RuntimeError, KeyError) as failure:
            if self._sink.error is None:
                if self._created:
                    raise
                raise not_continued(self.part, (str(failure).splitlines() or [""])[-1]) from failure
        error = self._sink.error
        if error is not None:
            self.close()
            raise disk_error(self.out, error, kept=self.committed) from error

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_attribute(value: object) -> object:
    if isinstance(value, dict | list | tuple):
        value = json.dumps(value)
    if isinstance(value, str):
        # A path or a command line may hold bytes that are no text; HDF5 stores text.
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    return value
