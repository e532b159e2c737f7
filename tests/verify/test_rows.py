"""Planted errors are found by the check of the first block."""

import pytest
import torch

from jacli.linear_map import DenseMap, FactoredMap
from jacli.network import Linearized, TensorNetwork, frozen_twin
from jacli.verify import cotangent_error, row_error, row_tolerance
from tests.cases import build
from tests.reference import reference_jacobian


@pytest.fixture
def honest():
    module, x, _ = build("conv_relu", torch.float64)
    return Linearized(TensorNetwork.of_module(frozen_twin(module)), x, {}), reference_jacobian(
        module, x
    ).mT.clone()


def test_the_truth_passes(honest):
    linearization, dense = honest
    for error in (row_error, cotangent_error):
        assert error(linearization, DenseMap(dense), seed=0) < row_tolerance(dense.dtype)


PLANTED = {
    "a shifted sample": lambda dense: dense.roll(1, 0),
    "a shifted row": lambda dense: dense.roll(1, 1),
    "a swapped axis": lambda dense: dense.reshape(2, 7, 3, 5, 4).transpose(3, 4).reshape(2, 7, 60),
    "a wrong scale": lambda dense: dense * 1.001,
    "a flipped sign": lambda dense: -dense,
    "a wrong mask": lambda dense: dense * (torch.arange(60) > 5),
    "not finite": lambda dense: dense.index_fill(2, torch.tensor([3]), torch.nan),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_error_is_found(name, seed, honest):
    linearization, dense = honest
    for error in (row_error, cotangent_error):
        assert error(linearization, DenseMap(PLANTED[name](dense)), seed=seed) > row_tolerance(dense.dtype)


def rounded(dense: torch.Tensor, relative: float) -> torch.Tensor:
    """With noise of that relative size in every entry."""
    noise = torch.randn(dense.shape, dtype=dense.dtype, generator=torch.Generator().manual_seed(0))
    return dense * (1 + relative * noise)


@pytest.mark.parametrize(("precision", "noise"), [("tf32", 3e-3), ("bf16", 2.4e-2)])
@pytest.mark.parametrize("error", [row_error, cotangent_error])
def test_a_reduced_precision_is_allowed_its_rounding_and_no_wrong_rule(honest, error, precision, noise):
    linearization, dense = honest
    allowed = row_tolerance(dense.dtype, precision)
    found = error(linearization, DenseMap(rounded(dense, noise)), seed=0)
    assert row_tolerance(dense.dtype) < found < allowed
    assert error(linearization, DenseMap(dense * 1.1), seed=0) > allowed


def test_factors_are_checked_as_their_product(honest):
    linearization, dense = honest
    identity = torch.eye(dense.shape[1], dtype=dense.dtype).expand(len(dense), -1, -1)
    assert row_error(linearization, FactoredMap(identity, dense), seed=0) < row_tolerance(dense.dtype)
    assert row_error(linearization, FactoredMap(identity.roll(1, 1), dense), seed=0) > 0.1


def test_rows_that_are_not_finite_in_both_agree():
    class Root(torch.nn.Linear):
        def forward(self, x):
            return torch.sqrt(super().forward(x))

    root = frozen_twin(Root(3, 4, bias=False))
    linearization = Linearized(TensorNetwork.of_module(root), torch.zeros(2, 3), {})
    dense = linearization.vjp(torch.eye(4)[:, None].expand(4, 2, 4)).transpose(0, 1)
    assert not torch.isfinite(dense).all()
    assert row_error(linearization, DenseMap(dense), seed=0) == 0
