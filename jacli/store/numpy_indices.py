"""NumPy's indexing for datasets that are read in boxes.

HDF5 itself wants the indices of a list to increase, takes one list at most, and no step below 1.  Here an
index means what it means for an array: integers, slices, lists, masks, and tuples of these.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Box = tuple[slice, ...]
"""One slice per axis, with a start, a stop and a step of at least 1."""

MAX_PIECE_BYTES = 32 * 2**20
"""Bytes that are read at once beside the result; one row at least."""

_Part = int | slice | np.ndarray


def take(
    read: Callable[[Box], np.ndarray],
    shape: tuple[int, ...],
    key: Any,
    *,
    itemsize: int,
    rows_per_chunk: int = 1,
) -> Any:
    """``array[key]`` of an array that is read in boxes.

    >>> array = np.arange(12).reshape(4, 3)
    >>> take(array.__getitem__, array.shape, ([3, 0, 3], slice(None, None, -1)), itemsize=8)
    array([[11, 10,  9],
           [ 2,  1,  0],
           [11, 10,  9]])

    Args:
        read: Box -> its numbers.
        shape: Of the array.
        key: Any index that NumPy takes, except ``np.newaxis``.
        itemsize: Bytes per number.
        rows_per_chunk: Rows of the first axis in one stored chunk: those needed of a chunk are read at once.

    Memory: the result, and `MAX_PIECE_BYTES` or one row, whichever is more.

    Raises:
        IndexError: As NumPy raises it.
    """
    parts, dots = _parts_of(key, shape)
    if not any(isinstance(part, np.ndarray) for part in parts):
        box, inside = _box(parts, shape)
        return read(box)[inside]
    flat, common = _flattened(parts)
    box, inside = _box(flat[1:], shape[1:])
    row_bytes = itemsize * math.prod(_length(part) for part in box)
    most = max(1, MAX_PIECE_BYTES // max(1, row_bytes))
    of_arrays = [axis for axis, part in enumerate(flat) if isinstance(part, np.ndarray)]
    first, last = of_arrays[0], of_arrays[-1]
    apart = last - first >= len(of_arrays)  # then NumPy puts the arrays' axis first
    at = 0 if apart else first
    if isinstance(flat[0], np.ndarray):
        pieces = _pieces_of_rows(flat[0], most, rows_per_chunk)
        values = _assemble(
            (
                (order, read((slice(low, high, 1), *box))[(rows - low, *_some(inside, order))])
                for low, high, order, rows in pieces
            ),
            len(flat[0]),
        )
    else:
        rows = range(shape[0])[flat[0]]
        values = _assemble(
            (
                (slice(start, start + len(some)), _read_range(read, some, box)[(slice(None), *inside)])
                for start, some in ((i, rows[i : i + most]) for i in range(0, max(1, len(rows)), most))
            ),
            len(rows),
            axis=1 if apart else 0,
        )
    if first < dots <= last:  # an ellipsis that stands for no axis parts them, too
        values, at = np.moveaxis(values, at, 0), 0
    return values.reshape(*values.shape[:at], *common, *values.shape[at + 1 :])


def _parts_of(key: Any, shape: tuple[int, ...]) -> tuple[list[_Part], int]:
    """One index per axis: integers and entries of arrays from 0 on, masks as the places where they hold.

    And the axis that the ellipsis stands before; the number of axes if there is none.
    """
    given = [_as_index(part) for part in (key if isinstance(key, tuple) else (key,))]
    dots = [i for i, part in enumerate(given) if part is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    indexed = sum(_axes(part) for part in given)
    if indexed > len(shape):
        raise IndexError(f"too many indices: there are {len(shape)} axes, and {indexed} were indexed")
    at = dots[0] if dots else len(given)
    given[at : at + len(dots)] = [slice(None)] * (len(shape) - indexed)
    parts: list[_Part] = []
    before = len(shape)
    for i, part in enumerate(given):
        axis = len(parts)
        if dots and i == at:
            before = axis
        if isinstance(part, np.ndarray) and part.dtype == bool:
            parts += _places(part, shape[axis : axis + part.ndim], axis)
        else:
            parts.append(_from_zero(part, shape[axis], axis))
    return parts, before


def _as_index(part: Any) -> Any:
    """An integer, a slice, an ellipsis, or an array of integers or booleans."""
    if isinstance(part, slice) or part is Ellipsis:
        return part
    if part is None:
        raise IndexError("np.newaxis is not supported here: apply it to the array returned")
    array = np.asarray(part)
    if array.size == 0 and not isinstance(part, np.ndarray):
        array = array.astype(np.intp)  # an empty list
    if array.dtype.kind not in "iub" or (array.dtype == bool and array.ndim == 0):
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), and integer or boolean arrays are valid indices, "
            f"not {array.dtype} of shape {array.shape}"
        )
    return operator.index(array[()]) if array.ndim == 0 else array


def _axes(part: Any) -> int:
    """Number of axes that an index consumes."""
    if part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == bool else 1


def _places(mask: np.ndarray, sizes: tuple[int, ...], axis: int) -> Sequence[np.ndarray]:
    """Where a mask over some axes holds: an array of indices for each of these."""
    if mask.shape != sizes:
        raise IndexError(f"the mask has shape {mask.shape}, and the axes from {axis} on have {sizes}")
    return np.nonzero(mask)


def _from_zero(part: _Part, size: int, axis: int) -> _Part:
    if isinstance(part, slice):
        return part
    low, high = (part.min(initial=0), part.max(initial=0)) if isinstance(part, np.ndarray) else (part, part)
    empty = isinstance(part, np.ndarray) and part.size == 0
    if not empty and not (-size <= low and high < size):
        wrong = low if low < -size else high
        raise IndexError(f"index {wrong} is out of bounds for axis {axis} with size {size}")
    if isinstance(part, np.ndarray):
        whole = part.astype(np.intp)
        return np.where(whole < 0, whole + size, whole)
    return part % size


def _flattened(parts: Sequence[_Part]) -> tuple[list[slice | np.ndarray], tuple[int, ...]]:
    """Integers and arrays broadcast against one another, each along one axis; and their common shape."""
    arrays = [np.asarray(part) for part in parts if not isinstance(part, slice)]
    try:
        common = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError as error:
        raise IndexError(f"shape mismatch: {error}") from error
    flat = [part if isinstance(part, slice) else np.broadcast_to(part, common).reshape(-1) for part in parts]
    return flat, common


def _box(parts: Sequence[_Part], shape: Sequence[int]) -> tuple[Box, tuple[_Part, ...]]:
    """The smallest box around what is indexed, and the index inside of it."""
    boxes: list[slice] = []
    inside: list[_Part] = []
    for part, size in zip(parts, shape, strict=True):
        if isinstance(part, slice):
            rows = range(size)[part]
            boxes.append(_forward(rows))
            inside.append(slice(None, None, -1 if rows.step < 0 else 1))
        elif isinstance(part, np.ndarray):
            low, high = (int(part.min()), int(part.max()) + 1) if part.size else (0, 0)
            boxes.append(slice(low, high, 1))
            inside.append(part - low)
        else:
            boxes.append(slice(part, part + 1, 1))
            inside.append(0)
    return tuple(boxes), tuple(inside)


def _forward(rows: range) -> slice:
    """The same numbers as a slice with a step of at least 1."""
    if not rows:
        return slice(0, 0, 1)
    low, high = min(rows[0], rows[-1]), max(rows[0], rows[-1])
    return slice(low, high + 1, abs(rows.step))


def _length(part: slice) -> int:
    return len(range(part.start, part.stop, part.step))


def _some(inside: Sequence[_Part], which: np.ndarray) -> tuple[_Part, ...]:
    """Some entries of the arrays of an index."""
    return tuple(part[which] if isinstance(part, np.ndarray) else part for part in inside)


def _read_range(read: Callable[[Box], np.ndarray], rows: range, box: Box) -> np.ndarray:
    values = read((_forward(rows), *box))
    return values[::-1] if rows.step < 0 else values


def _pieces_of_rows(
    rows: np.ndarray, most: int, per_chunk: int
) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """Rows in any order and with repeats as ranges to read: start, stop, places in ``rows``, rows there.

    A range holds rows that follow one another or lie in the same chunk, at most ``most`` of them.
    """
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    start = 0
    for at in range(1, len(ordered) + 1):
        if at < len(ordered):
            previous, row = int(ordered[at - 1]), int(ordered[at])
            near = row - previous <= 1 or row // per_chunk == previous // per_chunk
            if near and row - ordered[start] < most:
                continue
        yield int(ordered[start]), int(ordered[at - 1]) + 1, order[start:at], ordered[start:at]
        start = at
    if len(rows) == 0:
        yield 0, 0, order, ordered


def _assemble(
    parts: Iterator[tuple[np.ndarray | slice, np.ndarray]], length: int, *, axis: int = 0
) -> np.ndarray:
    """Parts of a result put where they belong along an axis of that length."""
    result: np.ndarray | None = None
    for where, part in parts:
        if result is None:
            result = np.empty((*part.shape[:axis], length, *part.shape[axis + 1 :]), part.dtype)
        result[(*(slice(None),) * axis, where)] = part
    assert result is not None  # an empty selection has one part, too
    return result
