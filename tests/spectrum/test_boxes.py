"""A sample read in boxes: each number once, in whole chunks where they fit."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jacli.spectrum.boxes import box_extents, read_boxes


class Contiguous:
    """An array as a dataset without chunks shows it."""

    chunks = None

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.shape: tuple[int, ...] = values.shape

    def __getitem__(self, index: object) -> np.ndarray:
        return self._values[index]  # type: ignore[index]


def test_boxes_tile_a_sample() -> None:
    values = np.arange(2 * 5 * 7, dtype=np.float32).reshape(2, 5, 7)
    found = np.full((5, 7), -1.0)
    boxes = list(read_boxes(Contiguous(values), 1, [2, 3]))
    for box, numbers in boxes:
        assert (found[box] == -1).all() and numbers.dtype == np.float64
        found[box] = numbers
    np.testing.assert_array_equal(found, values[1])
    assert [box for box, _ in boxes][:2] == [(slice(0, 2), slice(0, 3)), (slice(0, 2), slice(3, 6))]


def test_a_sample_that_is_one_number() -> None:
    ((box, numbers),) = read_boxes(Contiguous(np.arange(3.0)), 2, [])
    assert (box, float(numbers)) == ((), 2.0)


@pytest.mark.parametrize(
    ("shape", "chunks", "room", "expected"),
    [
        ((3, 400, 400), (1, 1, 400), 4000, [1, 10, 400]),
        ((3, 400, 400), (1, 1, 1), 4000, [1, 10, 400]),
        ((3, 8, 8), (1, 8, 8), 10**6, [3, 8, 8]),
        ((3, 8, 8), (3, 8, 8), 10, [1, 1, 8]),
        ((16, 9), (4, 9), 90, [8, 9]),
        ((), (), 5, []),
    ],
)
def test_boxes_are_whole_chunks(
    shape: tuple[int, ...], chunks: tuple[int, ...], room: int, expected: list[int]
) -> None:
    extents = box_extents(shape, chunks, room)
    assert extents == expected
    assert math.prod(extents) <= room
