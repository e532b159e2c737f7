"""Reading one sample of a dataset in boxes of bounded size, each chunk once if possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


def read_boxes(
    array: ChunkedArray, sample: int, extents: Sequence[int]
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.float64]]]:
    """One sample in boxes, the last axes fastest.

    >>> array = np.arange(6.0).reshape(1, 2, 3)
    >>> [numbers.tolist() for _, numbers in read_boxes(array, 0, (2, 2))]
    [[[0.0, 1.0], [3.0, 4.0]], [[2.0], [5.0]]]

    Args:
        array: ``(batch, ...)``.
        sample: Along the batch axis.
        extents: Of a box, one for each axis after the batch axis; `box_extents` gives good ones.

    Yields:
        The slices along the axes after the batch axis, and the numbers there in float64.
    """
    shape = array.shape[1:]
    for starts in product(*(range(0, n, step) for n, step in zip(shape, extents, strict=True))):
        box = tuple(
            slice(start, min(n, start + step)) for start, n, step in zip(starts, shape, extents, strict=True)
        )
        yield box, np.asarray(array[(sample, *box)], np.float64)


def sample_chunks(array: ChunkedArray) -> tuple[int, ...]:
    """Extents of a chunk along the axes after the batch axis; single numbers where there are no chunks.

    >>> import h5py
    >>> with h5py.File("chunked.h5", "w", driver="core", backing_store=False) as file:
    ...     sample_chunks(file.create_dataset("jacobian", (8, 6, 4), "f4", chunks=(1, 3, 2)))
    (3, 2)
    """
    return array.chunks[1:] if array.chunks else (1,) * (len(array.shape) - 1)


def box_extents(shape: Sequence[int], chunks: Sequence[int], room: int) -> list[int]:
    """Extents of the box in which to read an array: at most ``room`` numbers, in whole chunks if possible.

    Starts from one chunk, cut down if too large, then grows along the last axes first (they are
    contiguous) in multiples of the chunk: a chunk that two boxes share is read and decoded twice.

    >>> box_extents((3, 224, 224), chunks=(1, 32, 32), room=10_000)  # 9,216 numbers, nine whole chunks
    [1, 32, 224]
    """
    extents = [max(1, min(n, chunk)) for n, chunk in zip(shape, chunks, strict=True)]
    for axis in range(len(extents)):
        others = math.prod(extents) // extents[axis]
        extents[axis] = max(1, min(extents[axis], room // others))
    for axis in reversed(range(len(extents))):
        fit = room // (math.prod(extents) // extents[axis])
        if fit >= shape[axis]:
            extents[axis] = max(1, shape[axis])
        elif fit > extents[axis]:
            extents[axis] *= fit // extents[axis]
    return extents


class ChunkedArray(Protocol):
    """What is needed of an ``h5py.Dataset``: numbers on disk in chunks (None: in one run)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def chunks(self) -> tuple[int, ...] | None: ...

    def __getitem__(self, index: Any, /) -> Any: ...
