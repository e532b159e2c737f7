"""Pieces of a Jacobian that is only there as factors: equal to slices of the product, whatever the shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from jacli.linear_maps import FactoredMap
from jacli.run.factored_array import FactoredArray

BATCH, R = 3, 2
INPUTS = [(), (1,), (5,), (4, 3), (2, 4, 3)]
OUTPUTS = [(), (1,), (6,), (3, 2), (2, 3, 2)]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def array_of(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[FactoredArray, np.ndarray]:
    """Factors as an array, and their product: ``J[b, *i, *o] = sum_r left[b, o, r] right[b, r, i]``."""
    left = random(BATCH, math.prod(outputs), R, seed=1)
    right = random(BATCH, R, math.prod(inputs), seed=2)
    product = torch.einsum("bor,bri->bio", left, right).reshape(BATCH, *inputs, *outputs)
    return FactoredArray(FactoredMap(left, right), inputs, outputs), product.numpy()


def boxes(length: int) -> list[slice]:
    """All of an axis, its first part, and one place in the middle, as chunks of a file are."""
    return [slice(0, length), slice(0, max(1, length // 2)), slice(length // 2, length // 2 + 1)]


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_a_piece_is_a_slice_of_the_product(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    array, product = array_of(inputs, outputs)
    assert array.shape == product.shape and len(array) == BATCH
    pieces = list(itertools.product(*map(boxes, product.shape)))
    for piece in pieces[:: max(1, len(pieces) // 81)]:
        found = array[piece]
        assert found.shape == product[piece].shape
        np.testing.assert_allclose(found, product[piece], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("outputs", OUTPUTS, ids=str)
@pytest.mark.parametrize("inputs", INPUTS, ids=str)
def test_everything_at_once(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    array, product = array_of(inputs, outputs)
    np.testing.assert_allclose(array[(slice(None),) * product.ndim], product, rtol=1e-13, atol=1e-14)


def test_pieces_that_are_not_contiguous_or_reach_beyond() -> None:
    array, product = array_of((4, 3), (6,))
    for piece in (
        (slice(1, 3), slice(0, 4, 2), slice(1, 3), slice(1, 6, 3)),
        (slice(0, 100), slice(2, 100), slice(None), slice(5, 100)),
    ):
        np.testing.assert_allclose(array[piece], product[piece], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pieces_have_the_dtype_of_the_factors(dtype: torch.dtype) -> None:
    factors = FactoredMap(torch.ones(1, 4, 2, dtype=dtype), torch.ones(1, 2, 5, dtype=dtype))
    array = FactoredArray(factors, (5,), (4,))
    everything = array[slice(0, 1), slice(0, 5), slice(0, 4)]
    assert array.dtype == everything.dtype == torch.empty(0, dtype=dtype).numpy().dtype


def test_factors_with_a_history_are_read_by_value() -> None:
    left = torch.ones(1, 4, 2, requires_grad=True)
    array = FactoredArray(FactoredMap(left, torch.ones(1, 2, 5)), (5,), (4,))
    assert (array[slice(0, 1), slice(0, 5), slice(0, 4)] == 2).all()
