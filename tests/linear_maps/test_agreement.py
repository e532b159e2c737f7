"""Errors of one result against another: NaN and infinity hide nothing."""

import math
from itertools import product

import pytest
import torch

from jacli.linear_maps.agreement import finite, gaps, norms, ratios, relative_errors

INF, NAN = math.inf, math.nan
VALUES = (0.0, -1.5, 1e300, INF, -INF, NAN)


@pytest.mark.parametrize(("found", "reference"), list(product(VALUES, VALUES)))
def test_a_gap_is_a_number_and_symmetric(found, reference):
    a, b = torch.tensor([found]), torch.tensor([reference])
    gap = float(gaps(a, b))
    assert gap >= 0  # never NaN
    assert gap == float(gaps(b, a))
    if math.isfinite(a) != math.isfinite(b):
        assert gap == INF


@pytest.mark.parametrize(
    ("found", "reference", "gap"),
    [
        (INF, INF, 0),
        (-INF, -INF, 0),
        (NAN, NAN, 0),
        (NAN, INF, 0),
        (-INF, NAN, 0),
        (INF, -INF, INF),
        (2, 5, 3),
    ],
)
def test_kinds(found, reference, gap):
    assert float(gaps(torch.tensor(float(found)), torch.tensor(float(reference)))) == gap


def test_complex_numbers_by_their_parts():
    a, b = torch.tensor([1 + 1j, complex(0, NAN)]), torch.tensor([1 + 3j, complex(0, 1)])
    assert gaps(a, b).tolist() == [[0, 2], [0, INF]]
    assert finite(b[:1]).tolist() == [[1, 3]]


@pytest.mark.parametrize("size", [1e-200, 1.0, 1e200])
def test_norms_of_any_size(size):
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64) * size
    torch.testing.assert_close(norms(values), torch.tensor([5.0, 0.0], dtype=torch.float64) * size)
    assert norms(torch.tensor([[INF, 1.0]], dtype=torch.float64)).tolist() == [INF]
    assert norms(torch.zeros(2, 0)).tolist() == [0, 0]


def test_ratios():
    gap = torch.tensor([0.0, 0.0, 1.0, 1.0, INF, INF], dtype=torch.float64)
    size = torch.tensor([0.0, NAN, 0.0, INF, 2.0, INF], dtype=torch.float64)
    found = ratios(gap, size)
    assert found[:2].tolist() == [0, 0]
    assert (found[2:] > 1e200).all()  # neither NaN nor 0, whatever the size


def test_one_sample_does_not_hide_the_others():
    reference = torch.ones(4, 3)
    found = reference.clone()
    found[1, 0], found[2, 1] = NAN, INF
    found[3] *= 1.5
    errors = relative_errors(found, reference)
    assert errors[0] == 0 and errors[1] == errors[2] == INF
    assert errors[3] == pytest.approx(0.5)
    reference[1, 0] = NAN  # now both are: the rest of that sample counts
    found[1, 1] = 3
    assert relative_errors(found, reference)[1] == pytest.approx(2 / math.sqrt(2))


@pytest.mark.parametrize("scale", [NAN, INF, 0.0])
def test_a_scale_that_says_nothing_does_not_count(scale):
    found, reference = torch.tensor([[1.5, 0.0]]), torch.tensor([[1.0, 0.0]])
    scales = torch.tensor([scale], dtype=torch.float64)
    assert float(relative_errors(found, reference, scale=scales)) == pytest.approx(0.5)
    assert float(relative_errors(found, reference, scale=torch.tensor([10.0]))) == pytest.approx(0.05)
