"""Shards of one run -> one file: an index over them (HDF5 virtual datasets), or a copy of everything.

What is to be merged, and that it belongs together, is decided by the caller (`jacli.commands.merge`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np

from jacli.durable.sink import FileSink
from jacli.errors import OutputError, ResultsError
from jacli.store.batches import first_damage
from jacli.store.dimensions import attach_scales, create_scales
from jacli.store.lay_out import CHECKSUMMED_METADATA
from jacli.store.paths import cannot_write, check_place, free_bytes, new_part_path, publish, words_of
from jacli.store.pieces import pieces
from jacli.store.schema import DatasetLayout
from jacli.store.shard_file import ShardFile
from jacli.store.sources import Source, attributes_of_done, identity_of
from jacli.untrusted.hdf5_chunks import checked

COPIED_BYTES = 8 * 2**10
"""Statistics of a sample up to this size are copied into an index, and tables never need the shards.

It takes ImageNet's: 1,000 numbers in float64, three times, at most 28 KB beside a Jacobian of 602 MB.
Measured at 1,000 shards with a million samples of 10 classes, on a local disk: a table takes 0.3 s from
copies (322 MB), 2.3 s from the shards, which with copies may as well be on tape.
"""

_NEVER_COPIED = ("jacobian", "inputs", "factors/", "parameters/")
"""Datasets that no table reads; names, or beginnings of names."""

_PIECE_BYTES = 8 * 2**20
"""Rows copied at once, where a sample is smaller."""

_CACHE_BYTES = 64 * 2**20
"""Cache of decoded chunks of a shard, in bytes: its chunks and those of the copy need not be aligned."""


def is_indexed(name: str, layout: DatasetLayout) -> bool:
    """Whether an index leaves this dataset in the shards.

    >>> images = DatasetLayout((8, 3, 64, 64), np.dtype("f4"), ("batch", "c", "h", "w"), "")  # 48 KiB
    >>> logits = DatasetLayout((8, 1000), np.dtype("f4"), ("batch", "n_classes"), "")  # 4 KiB per sample
    >>> is_indexed("images", images), is_indexed("outputs", logits)
    (True, False)
    """
    if layout.dims[:1] != ("batch",):
        return False
    if name.startswith(_NEVER_COPIED):
        return True
    return math.prod(layout.shape[1:]) * layout.dtype.itemsize > COPIED_BYTES


def merged_layouts(shards: Sequence[ShardFile]) -> dict[str, DatasetLayout]:
    """The datasets of the first shard, with the samples of all."""
    merged = {}
    for name, layout in shards[0].layouts.items():
        if layout.dims[:1] in (("batch",), ("batches",)):
            length = sum(shard.layouts[name].shape[0] for shard in shards)
            layout = replace(layout, shape=(length, *layout.shape[1:]))
        merged[name] = replace(layout, chunks=None) if layout.dims == ("batches",) else layout
    return merged


def write_merged(
    out: Path,
    shards: Sequence[ShardFile],
    attributes: Mapping[str, object],
    *,
    virtual: bool,
    overwrite: bool,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``out`` out of shards of the same datasets, in their order; the caller holds its lock.

    Every shard is read whole, also for an index, and compared with its checksums: at the speed of the disk.

    Memory: 8 MiB and a chunk at a time, plus the caches of two files (some 70 MiB).

    Args:
        out: The merged file; it appears when complete.
        shards: In the order of their samples.
        attributes: Root attributes; ``sources`` and ``complete`` are added.
        virtual: Leave large datasets in the shards (`is_indexed`), or copy everything.
        overwrite: Replace ``out`` if it is there.
        progress: Called with samples merged and samples in all.

    Raises:
        OutputError: ``out`` exists, the disk is full, or it cannot be written; nothing is left of it then.
        ResultsError: A shard cannot be read, or is not what was written.
    """
    check_place(out, overwrite=overwrite)
    layouts = merged_layouts(shards)
    if virtual:  # an index holds small numbers only: no filter, no chunks, the fastest to read
        layouts = {name: replace(layout, chunks=None) for name, layout in layouts.items()}
    indexed = {name for name, layout in layouts.items() if virtual and is_indexed(name, layout)}
    _check_room(out, shards, sum(layout.nbytes for name, layout in layouts.items() if name not in indexed))
    sources = _sources(out, shards)
    with _new_file(out, overwrite=overwrite) as (file, check):
        create_scales(file, layouts)
        with h5py.File(shards[0].path, "r") as first:
            for name, layout in layouts.items():
                if name in indexed:
                    dataset = _create_virtual(file, name, layout, shards, sources)
                else:
                    dataset = _create_like(file, name, layout, None if layout.chunks is None else first[name])
                attach_scales(file, dataset, layout.dims)
                dataset.attrs["long_name"] = layout.long_name
                if layout.units:
                    dataset.attrs["units"] = layout.units
        check()
        per_batch = [name for name, layout in layouts.items() if layout.dims == ("batches",)]
        copied = [name for name in layouts if name not in indexed and name not in per_batch]
        batches = overflowed = 0
        for shard, source in zip(shards, sources, strict=True):
            try:
                with h5py.File(shard.path, "r", rdcc_nbytes=_CACHE_BYTES) as opened:
                    _check_checksums(shard, opened)
                    for name in copied:
                        _copy_rows(checked(opened[name]), file[name], layouts[name], source)
                    for name in per_batch:
                        entries = opened[name][:] + (source.start if name == "batch_start" else 0)
                        file[name][batches : batches + len(entries)] = entries
                    overflowed += attributes_of_done(shard.path, opened["done"]).count("overflowed")
                    batches += shard.layouts[per_batch[0]].shape[0] if per_batch else 0
            except (OSError, KeyError) as error:
                check()
                raise ResultsError(
                    f"{shard.path} cannot be read.",
                    why=f"{str(error).splitlines()[-1]}.",
                    hint="It is damaged, or being changed: compute it again, and merge again.",
                ) from error
            check()
            progress(source.stop, sources[-1].stop)
        if overflowed:
            file["done"].attrs["overflowed"] = np.int64(overflowed)
        own_attributes = {**attributes, "sources": [asdict(source) for source in sources], "complete": True}
        for name, value in own_attributes.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, list | dict) else value


def _sources(out: Path, shards: Sequence[ShardFile]) -> list[Source]:
    """Names relative to the folder of ``out``, so that both can be moved together."""
    folder = out.parent.resolve()
    sources, start = [], 0
    for shard in shards:
        own = shard.attributes.get("inputs_sha256")
        sources.append(
            Source(
                name=os.path.relpath(shard.path.parent.resolve() / shard.path.name, folder),
                start=start,
                stop=start + shard.samples,
                size=shard.size,
                modified=shard.modified,
                identity=identity_of(shard.attributes),
                inputs_sha256=None if own is None else str(own),
            )
        )
        start += shard.samples
    return sources


def _create_virtual(
    file: h5py.File, name: str, layout: DatasetLayout, shards: Sequence[ShardFile], sources: Sequence[Source]
) -> h5py.Dataset:
    whole = h5py.VirtualLayout(layout.shape, layout.dtype)
    for shard, source in zip(shards, sources, strict=True):
        whole[source.start : source.stop] = h5py.VirtualSource(
            source.name, name, shard.layouts[name].shape, layout.dtype
        )
    return file.create_virtual_dataset(name, whole, fillvalue=layout.fill_value)


def _create_like(
    file: h5py.File, name: str, layout: DatasetLayout, like: h5py.Dataset | None
) -> h5py.Dataset:
    """An empty dataset, with the chunks and filters of another if one is given."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE) if like is None else like.id.get_create_plist()
    properties.set_fill_value(np.array(layout.fill_value, layout.dtype))
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(layout.shape)
    kind = h5py.h5t.py_create(layout.dtype)
    h5py.h5d.create(file.id, name.encode(), kind, space, properties, links)
    return file[name]


def _copy_rows(dataset: h5py.Dataset, target: h5py.Dataset, layout: DatasetLayout, source: Source) -> None:
    """A shard's rows to their place, a chunk at a time: the target's, or where it has none the shard's.

    Args:
        dataset: Of the shard.
        target: Of the merged file.
        layout: Of the target.
        source: Says which rows they are.
    """
    if layout.dims[:1] != ("batch",):
        target[...] = dataset[...]
        return
    if layout.chunks is None:
        layout = replace(layout, chunks=dataset.chunks or _rows_at_once(layout))
        boxes = pieces(layout, 0, source.stop - source.start)
        shift = source.start
    else:
        boxes, shift = pieces(layout, source.start, source.stop), 0
    for rows, *rest in boxes:
        first = rows.start + shift
        last = rows.stop + shift
        target[(slice(first, last), *rest)] = dataset[
            (slice(first - source.start, last - source.start), *rest)
        ]


def _check_checksums(shard: ShardFile, opened: h5py.File) -> None:
    if "batch_start" not in shard.layouts:
        return  # of schema jacli/1, which had none
    damage = first_damage({name: opened[name] for name in shard.layouts}, shard.samples)
    if damage:
        raise ResultsError(
            f"{shard.path} was damaged after it was written.",
            why=f"The checksum is wrong: {damage}.",
            hint="Compute this shard again, check its disk, and merge again.",
        )


def _rows_at_once(layout: DatasetLayout) -> tuple[int, ...]:
    return (max(1, _PIECE_BYTES // max(1, layout.nbytes_of(1))), *layout.shape[1:])


@contextlib.contextmanager
def _new_file(out: Path, *, overwrite: bool) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """``OUT.part.new`` to be filled, and a function that raises if the disk refused something.

    It becomes ``out`` when the block ends, and goes if that raises.
    """
    part = new_part_path(out)
    try:
        part.unlink(missing_ok=True)  # of a merge that was killed: the lock says that none is running
        sink = FileSink(part, create=True)
    except OSError as error:
        raise cannot_write(out, error) from error
    file = h5py.File(sink, "w", libver=CHECKSUMMED_METADATA)

    def check() -> None:
        file.flush()
        if sink.error is not None:
            raise sink.error

    try:
        try:
            yield file, check
            check()
            file.close()
            if sink.error is None:
                sink.remove_journal()  # there is none: this waits for the disk
        except (OSError, RuntimeError) as error:
            # A failed write may surface as any error of HDF5's; the sink keeps the system's own.
            if sink.error is None and not (isinstance(error, OSError) and error.errno):
                raise
            raise _failed(out, sink.error or error) from error
        if sink.error is not None:
            raise _failed(out, sink.error)
    except BaseException:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            file.close()
        part.unlink(missing_ok=True)
        raise
    finally:
        sink.close()
    publish(part, out, overwrite=overwrite)


def _check_room(out: Path, shards: Sequence[ShardFile], nbytes: int) -> None:
    """Refuse a disk with less room than the copied values need; compressed, no more than in the shards."""
    needed, free = min(nbytes, sum(shard.size for shard in shards)), free_bytes(out)
    if needed > free:
        raise OutputError(
            f"{out} does not fit on its disk.",
            why=f"What is copied needs {needed:,} bytes, and {free:,} are free in {out.parent}.",
            hint="Merge to another disk with -o, or leave the large datasets in the shards: --virtual.",
        )


def _failed(out: Path, error: Exception) -> OutputError:
    why = words_of(error, out) if isinstance(error, OSError) else str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {out} was not written.",
            why=f"{why} in {out.parent}; the shards are as they were, and the rest was removed.",
            hint="Free space and merge again, or merge to another disk with -o.",
        )
    return OutputError(
        f"{out} cannot be written.",
        why=f"{why}; the shards are as they were.",
        hint="Choose a folder that you may write to, with -o.",
    )
