from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jacli.errors import InputsError
from jacli.inputs import check_dtype, check_rows, open_inputs


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floating_inputs_pass(dtype: str) -> None:
    check_dtype(np.dtype(dtype))


@pytest.mark.parametrize(
    ("dtype", "remedy"),
    [
        ("uint8", "/ 255"),
        ("int64", "embeddings"),
        ("bool", "--arg"),
        ("complex64", "two channels"),
        ("longdouble", "float32"),
    ],
)
def test_other_inputs_are_refused_with_the_remedy(dtype: str, remedy: str) -> None:
    with pytest.raises(InputsError, match=remedy):
        check_dtype(np.dtype(dtype))


def test_finite_rows_pass() -> None:
    check_rows(np.zeros((3, 2), np.float16), [0, 1, 2])


def test_rows_that_are_not_finite_are_named() -> None:
    rows = np.zeros((20, 3, 2), np.float32)
    rows[4, 0, 1] = np.nan
    rows[7, 2, 0] = -np.inf
    with pytest.raises(InputsError, match=r"(?s)2 of 20.*Samples 104, 107\."):
        check_rows(rows, np.arange(100, 120))
    rows[:] = np.inf
    with pytest.raises(InputsError, match=r"0, 1, 2, 3, 4, \.\.\."):
        check_rows(rows, np.arange(20))


def test_samples_that_are_single_numbers() -> None:
    with pytest.raises(InputsError, match=r"Sample 1\."):
        check_rows(np.array([0.0, np.nan]), [0, 1])


def _file(path: Path, bad: list[int], n: int = 40) -> Path:
    x = np.zeros((n, 3), np.float32)
    x[bad, 1] = np.nan
    np.save(path, x)
    return path


@pytest.mark.parametrize(
    ("bad", "samples", "count", "remedy"),
    [
        ([2, 30, 31], None, "3 of 40", "0:2,3:30,32:40"),
        ([0], None, "1 of 40", "1:40"),
        ([39, 1], "0:10", "1 of 10", "0,2:10"),
        ([7, 20], "20,7,9,5:7", "2 of 5", "9,5:7"),
        ([-1], "-3:", "1 of 3", "37:39"),
    ],
)
def test_all_samples_are_looked_at(
    tmp_path: Path, bad: list[int], samples: str | None, count: str, remedy: str
) -> None:
    """Those of the whole run, though only a few rows were read; and what is offered leaves them out."""
    path = str(_file(tmp_path / "x.npy", bad))
    with open_inputs(path, samples=samples) as source:
        index = source.index.tolist()
        at = next(i for i, row in enumerate(source.read(0, len(source))) if np.isnan(row).any())
        one = source.at(source.index[at : at + 1])  # a shard with one sample
        for part in (source, one):
            with pytest.raises(InputsError, match=count) as raised:
                check_rows(one.read(0, 1), one.index, part)
            assert f"--samples {remedy}." in raised.value.hint
    wrong = [number % 40 for number in bad]
    assert str(next(number for number in index if number in wrong)) in raised.value.why
    with open_inputs(path, samples=remedy) as source:
        assert source.index.tolist() == [number for number in index if number not in wrong]


def test_no_list_that_nobody_would_copy(tmp_path: Path) -> None:
    with (
        open_inputs(str(_file(tmp_path / "x.npy", list(range(0, 200, 2)), 200))) as source,
        pytest.raises(InputsError, match=r"(?s)100 of 200.*np\.isfinite") as raised,
    ):
        check_rows(source.read(0, 1), source.index[:1], source)
    assert "--samples" not in raised.value.hint


def test_where_nothing_is_finite_nothing_is_offered(tmp_path: Path) -> None:
    with (
        open_inputs(str(_file(tmp_path / "x.npy", [0, 1], 2))) as source,
        pytest.raises(InputsError, match="no sample is finite"),
    ):
        check_rows(source.read(0, 1), source.index[:1], source)
