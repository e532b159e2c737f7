"""Indices on boxes against NumPy's own."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from jacli.store import ResultLayout, numpy_indices, open_results
from jacli.store.numpy_indices import Box, take
from tests.store.layouts import write_file

SHAPE = (9, 4, 3, 5)


def _index_along(size: int, draw: random.Random) -> Any:
    """An index along one axis, of any kind."""
    bounds = [None, *range(-size - 1, size + 2)]
    return draw.choice(
        [
            lambda: draw.randrange(-size, size),
            lambda: np.int64(draw.randrange(-size, size)),
            lambda: slice(None),
            lambda: slice(draw.choice(bounds), draw.choice(bounds), draw.choice([None, 2, -1, -2, 3, -3])),
            lambda: [draw.randrange(-size, size) for _ in range(draw.randrange(4))],
            lambda: np.array([[draw.randrange(-size, size)] for _ in range(3)]),
            lambda: [draw.random() < 0.5 for _ in range(size)],
            lambda: np.zeros(size, bool),
        ]
    )()


def _random_keys(count: int) -> list[Any]:
    draw = random.Random(0)
    keys: list[Any] = []
    for _ in range(count):
        before, behind = draw.randrange(3), draw.randrange(3)
        key = [_index_along(size, draw) for size in SHAPE[:before]]
        if behind or draw.random() < 0.4:
            key += [..., *(_index_along(size, draw) for size in SHAPE[len(SHAPE) - behind :])]
        keys.append(key[0] if len(key) == 1 and draw.random() < 0.5 else tuple(key))
    return keys


@pytest.mark.parametrize("piece", [8, 500, 2**20])
def test_any_index_means_what_it_means_for_an_array(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    monkeypatch.setattr(numpy_indices, "MAX_PIECE_BYTES", piece)

    def read(box: Box) -> np.ndarray:
        assert all(part.step >= 1 and part.start >= 0 for part in box)
        return array[box].copy()

    compared = 0
    for key in _random_keys(3000):
        try:
            expected = array[key]
        except IndexError:  # arrays that do not fit together
            with pytest.raises(IndexError):
                take(read, SHAPE, key, itemsize=8)
            continue
        found = take(read, SHAPE, key, itemsize=8, rows_per_chunk=2)
        np.testing.assert_array_equal(found, expected, strict=True, err_msg=str(key))
        compared += 1
    assert compared > 2000


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (9, "out of bounds for axis 0 with size 9"),
        (([0, -10],), "index -10 is out of bounds"),
        ((0, 0, 0, 0, 0), "too many indices"),
        ((..., 0, ...), "single ellipsis"),
        ([0.5], "float64"),
        ("jacobian", "only integers"),
        (True, "only integers"),
        (None, "newaxis"),
        (np.ones(8, bool), r"mask has shape \(8,\)"),
        ((..., np.ones((3, 4), bool)), r"axes from 2 on have \(3, 5\)"),
        (([0, 1], [0, 1, 2]), "shape mismatch"),
    ],
)
def test_what_is_no_index_says_why(key: object, words: str) -> None:
    with pytest.raises(IndexError, match=words):
        take(lambda box: np.zeros(SHAPE)[box], SHAPE, key, itemsize=8)


@pytest.mark.parametrize("mask_axes", [1, 2, 4])
def test_masks_over_several_axes(mask_axes: int) -> None:
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    mask = np.random.default_rng(0).random(SHAPE[:mask_axes]) < 0.3
    np.testing.assert_array_equal(take(lambda box: array[box], SHAPE, mask, itemsize=8), array[mask])


def test_no_more_is_read_than_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows far apart one by one, one entry of each; never more than a piece at once."""
    shape, boxes = (10_000, 1000), []
    monkeypatch.setattr(numpy_indices, "MAX_PIECE_BYTES", 80_000)

    def read(box: Box) -> np.ndarray:
        boxes.append(box)
        return np.zeros([len(range(shape[i])[part]) for i, part in enumerate(box)])

    rows = [9000, 5, 5, 7000]
    assert take(read, shape, (rows, 3), itemsize=8).shape == (4,)
    assert sorted((box[0].start, box[0].stop) for box in boxes) == [(5, 6), (7000, 7001), (9000, 9001)]
    assert all(box[1] == slice(3, 4, 1) for box in boxes)
    boxes.clear()
    assert take(read, shape, np.arange(100)[::-1], itemsize=8).shape == (100, 1000)
    assert max(box[0].stop - box[0].start for box in boxes) * 8000 <= 80_000


def test_datasets_of_a_file_take_them(tmp_path: Path) -> None:
    written = write_file(tmp_path / "out.h5")["jacobian"]
    order = np.argsort(written.sum(axis=(1, 2, 3, 4)))
    with open_results(tmp_path / "out.h5") as results:
        jacobian = results.jacobian
        assert isinstance(jacobian, h5py.Dataset)
        for key in (
            order[-5:],
            [3, 3, 0],
            (order[:2], ..., 0),
            slice(None, None, -3),
            [],
            order > 4,
            (-1, 1),
        ):
            np.testing.assert_array_equal(jacobian[key], written[key], strict=True)
        np.testing.assert_array_equal(np.asarray(jacobian), written)
        assert jacobian.astype("float64")[[1, 0]].dtype == np.float64
        into = np.zeros((2, *written.shape[1:]), np.float32)
        jacobian.read_direct(into, np.s_[[4, 2]])
        np.testing.assert_array_equal(into, written[[4, 2]])
        np.testing.assert_array_equal(next(iter(jacobian)), written[0])


@pytest.mark.parametrize("compress", ["gzip", "lzf"])
def test_compressed_factors_take_them(tmp_path: Path, compress: str) -> None:
    layout = ResultLayout(
        10,
        (6,),
        (5,),
        n_singular_values=2,
        save_jacobian=False,
        factor_width=2,
        compress=compress,
        batch_size=4,
    )
    written = write_file(tmp_path / "out.h5", layout)
    with open_results(tmp_path / "out.h5") as results:
        for name in ("factors/left", "factors/right"):
            for key in ([7, 0, 0, -1], slice(8, None, -2), np.arange(10) % 3 == 0, ([1, 0], [0, 1])):
                np.testing.assert_array_equal(results[name][key], written[name][key], strict=True)
        with pytest.raises(AttributeError, match="factors/left times factors/right"):
            _ = results.jacobian
