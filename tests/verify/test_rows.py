"""Planted errors are found by the check of the first block."""

import pytest
import torch

from jacli.linear_maps import DenseMap, FactoredMap
from jacli.network import Linearized, TensorNetwork, frozen_twin
from jacli.verify import batch_errors, cotangent_error, row_error, row_tolerance, transpose_error
from tests.cases import build
from tests.reference import reference_jacobian


@pytest.fixture
def honest():
    module, x, _ = build("conv_relu", torch.float64)
    return Linearized(TensorNetwork.of_module(frozen_twin(module)), x, {}).tape(), reference_jacobian(
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
    dense = linearization.batched().vjp(torch.eye(4)[:, None].expand(4, 2, 4)).transpose(0, 1)
    assert not torch.isfinite(dense).all()
    assert row_error(linearization.tape(), DenseMap(dense), seed=0) == 0


CHECKS = {
    "rows": row_error,
    "cotangent": cotangent_error,
    "batch": lambda *arguments, seed: batch_errors(*arguments, seed=seed)[0],
}


class Wide(torch.nn.Module):
    """198 outputs; with ``root`` one of them has an infinite slope where the first input is zero."""

    def __init__(self, root: bool) -> None:
        super().__init__()
        self.linear, self.root = torch.nn.Linear(6, 198), root

    def forward(self, x):
        y = torch.tanh(self.linear(x))
        return torch.cat([y[:, 1:], x[:, :1].abs().sqrt()], 1) if self.root else y


def wide(*, root: bool, batch: int = 9) -> tuple[Linearized, torch.Tensor]:
    torch.manual_seed(2)
    module, x = Wide(root).double(), torch.randn(batch, 6, dtype=torch.float64)
    x[3, 0] = 0.0 if root else 1.0
    linearization = Linearized(TensorNetwork.of_module(frozen_twin(module)), x, {})
    rows = [
        linearization.tape().vjp(torch.eye(198, dtype=torch.float64)[i].expand(1, batch, -1))[0]
        for i in range(198)
    ]
    return linearization.tape(), torch.stack(rows, 1)


@pytest.mark.parametrize("check", CHECKS)
def test_a_sample_that_is_not_finite_hides_no_other(check):
    linearization, dense = wide(root=True)
    assert not torch.isfinite(dense[3]).all() and torch.isfinite(dense[4:]).all()
    tolerance = row_tolerance(dense.dtype)
    for seed in range(10):
        assert CHECKS[check](linearization, DenseMap(dense), seed=seed) <= tolerance
        halved = dense * 0.5
        assert not CHECKS[check](linearization, DenseMap(halved), seed=seed) <= tolerance


@pytest.mark.parametrize("check", ["rows", "cotangent"])
def test_a_method_that_is_finite_where_plain_passes_are_not_differs(check):
    linearization, dense = wide(root=True)
    claimed = DenseMap(dense.nan_to_num(0, 0, 0))
    assert CHECKS[check](linearization, claimed, seed=0) == torch.inf


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("wrong", [[7], [0, 197], [20, 21, 22]])
def test_few_wrong_rows_of_many_are_found(check, wrong):
    linearization, dense = wide(root=False)
    dense[:, wrong] *= 0.16
    for seed in range(40):
        assert CHECKS[check](linearization, DenseMap(dense), seed=seed) > row_tolerance(dense.dtype)


@pytest.mark.parametrize("check", CHECKS)
def test_matrices_of_the_first_samples_of_a_padded_batch(check):
    linearization, dense = wide(root=False)
    assert CHECKS[check](linearization, DenseMap(dense[:5]), seed=1) < 1e-12
    assert CHECKS[check](linearization, DenseMap(dense[1:6]), seed=1) > 0.1


class Leaky(torch.nn.Module):
    """Its gradients cross from a sample to its neighbour, or to all others, its outputs do not."""

    def __init__(self, share: float, *, neighbour: bool) -> None:
        super().__init__()
        self.linear, self.share, self.neighbour = torch.nn.Linear(6, 11).double(), share, neighbour

    def forward(self, x):
        other = x.roll(1, 0) if self.neighbour else x.mean(0)
        return self.linear(x + self.share * (other - other.detach()))


@pytest.mark.parametrize("share", [1.0, 1e-3])
@pytest.mark.parametrize("neighbour", [True, False])
@pytest.mark.parametrize("batch", [2, 3, 16])
def test_gradients_that_cross_between_samples_are_found(share, neighbour, batch):
    module = Leaky(share, neighbour=neighbour)
    linearization = Linearized(
        TensorNetwork.of_module(module), torch.randn(batch, 6, dtype=torch.float64), {}
    )
    rows = [linearization.tape().vjp(torch.eye(11).double()[i].expand(1, batch, -1))[0] for i in range(11)]
    matrices = DenseMap(torch.stack(rows, 1))  # as loop has them: with what crosses
    for seed in range(10):
        error, crossed = batch_errors(linearization.tape(), matrices, seed=seed)
        assert error > row_tolerance(torch.float64) or crossed > 1e-6
    if not neighbour:
        assert crossed > 1e-6


@pytest.mark.parametrize("factor", [0.5, 1.001])
def test_forward_mode_is_the_transpose_of_reverse_passes(factor, honest):
    tape, dense = honest
    assert transpose_error(tape, DenseMap(dense), seed=0) < 1e-12
    for seed in range(5):
        assert transpose_error(tape, DenseMap(factor * dense), seed=seed) > row_tolerance(torch.float64)
