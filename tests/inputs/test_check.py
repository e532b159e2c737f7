from __future__ import annotations

import numpy as np
import pytest

from jacli.errors import InputsError
from jacli.inputs import check_dtype, check_rows


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
