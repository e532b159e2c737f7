"""Norms and singular values of a block: from the factors as from their product."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from jacli.linear_maps import DenseMap, FactoredMap
from jacli.options.methods import METHODS
from jacli.plans.plan import WholePlan
from jacli.run import statistics
from jacli.run.statistics import statistics_of

SHAPES = {
    "narrow": (2, 9, 4, 30),
    "r > n_out": (2, 3, 5, 30),
    "r > n_in": (2, 9, 5, 3),
    "r = 1": (2, 9, 1, 30),
    "one output": (3, 1, 1, 6),
    "one input": (3, 6, 1, 1),
    "tall": (2, 40, 4, 6),
}
"""Batch, outputs, r, inputs."""


def plan(singular_values: int, *, everything: bool = False) -> WholePlan:
    """What statistics are asked of a batch; the rest of a plan is not their matter."""
    return WholePlan(
        filled_by=METHODS["replicate"],
        vectors_per_pass=1,
        why="",
        batch_size=2,
        singular_values=singular_values,
        all_singular_values=everything,
    )


def factors(name: str, dtype: torch.dtype) -> FactoredMap:
    batch, n_out, r, n_in = SHAPES[name]
    generator = torch.Generator().manual_seed(len(name))
    left = torch.randn(batch, n_out, r, dtype=torch.float64, generator=generator)
    right = torch.randn(batch, r, n_in, dtype=torch.float64, generator=generator)
    return FactoredMap(left.to(dtype), right.to(dtype))


def expected_of(matrices: FactoredMap) -> tuple[Tensor, Tensor, Tensor]:
    """Row norms, Frobenius norms and singular values by LAPACK from the float64 product."""
    product = matrices.left.double() @ matrices.right.double()
    rows = torch.linalg.vector_norm(product, dim=2)
    return rows, torch.linalg.matrix_norm(product), torch.linalg.svdvals(product)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_factors_have_the_statistics_of_their_product(name: str, dtype: torch.dtype) -> None:
    made = factors(name, dtype)
    count = min(made.n_out, made.n_in)
    rows, frobenius, values = expected_of(made)
    dense = DenseMap(made.left.double() @ made.right.double())
    for matrices in (made, dense):
        found = statistics_of(matrices, plan(count, everything=True), seed=0)
        assert (
            found.class_norms.dtype == found.frobenius.dtype == found.spectrum.values.dtype == torch.float64
        )
        torch.testing.assert_close(found.class_norms, rows, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.frobenius, frobenius, rtol=1e-12, atol=1e-12)
        assert found.spectrum.values.shape == found.spectrum.errors.shape == (len(rows), count)
        assert ((found.spectrum.values - values).abs() <= found.spectrum.errors + 1e-12 * values[:, :1]).all()
        assert (found.spectrum.errors <= 1e-6 * values[:, :1]).all()


@pytest.mark.parametrize("make", [lambda m: m, lambda m: DenseMap(m.dense())], ids=["factors", "dense"])
@pytest.mark.parametrize("k", [1, 3])
def test_only_the_largest(make, k: int) -> None:
    made = factors("narrow", torch.float64)
    found = statistics_of(make(made), plan(k), seed=0)
    assert found.spectrum.values.shape == found.spectrum.errors.shape == (2, k)
    torch.testing.assert_close(found.spectrum.values, expected_of(made)[2][:, :k], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("make", [lambda m: m, lambda m: DenseMap(m.dense())], ids=["factors", "dense"])
def test_none(make) -> None:
    made = factors("narrow", torch.float64)
    found = statistics_of(make(made), plan(0), seed=0)
    assert found.spectrum is None
    torch.testing.assert_close(found.frobenius, expected_of(made)[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [lambda m: m, lambda m: DenseMap(m.dense())], ids=["factors", "dense"])
def test_few_of_a_large_matrix_come_from_products_with_vectors(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one has no Gram matrix formed, unless all of its values are wanted."""
    monkeypatch.setattr(statistics, "SINGULAR_VALUES_LIMIT", 5)
    made = factors("narrow", torch.float64)
    values = expected_of(made)[2]

    def fail(*arguments: object) -> None:
        raise AssertionError("the matrix was decomposed")

    with monkeypatch.context() as patched:
        for name in ("singular_values", "factored_singular_values"):
            patched.setattr(statistics, name, fail)
        found = statistics_of(make(made), plan(2), seed=0)
    torch.testing.assert_close(found.spectrum.values, values[:, :2], rtol=1e-6, atol=1e-10)
    found = statistics_of(make(made), plan(9, everything=True), seed=0)
    assert ((found.spectrum.values - values).abs() <= found.spectrum.errors + 1e-12 * values[:, :1]).all()


def test_the_product_is_not_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not fit in memory."""
    made = factors("narrow", torch.float64)
    monkeypatch.setattr(FactoredMap, "dense", lambda self: pytest.fail("the product was formed"))
    statistics_of(made, plan(9, everything=True), seed=0)


def test_float32_norms_do_not_overflow() -> None:
    """Their squares would."""
    dense = DenseMap(torch.full((1, 2, 4), 1e30))
    found = statistics_of(dense, plan(0), seed=0)
    torch.testing.assert_close(found.class_norms, torch.full((1, 2), 2e30).double(), rtol=1e-6, atol=0)
    factored = FactoredMap(torch.full((1, 2, 1), 1e15), torch.full((1, 1, 4), 1e15))
    found = statistics_of(factored, plan(0), seed=0)
    torch.testing.assert_close(found.class_norms, torch.full((1, 2), 2e30).double(), rtol=1e-6, atol=0)


def test_a_sample_that_is_not_finite_stays_for_itself() -> None:
    made = factors("narrow", torch.float64)
    _, frobenius, values = expected_of(made)
    left = made.left.clone()
    left[0, 0, 0] = math.nan
    found = statistics_of(FactoredMap(left, made.right), plan(9, everything=True), seed=0)
    assert not found.frobenius[0].isfinite() and found.frobenius[1] == pytest.approx(float(frobenius[1]))
    assert not found.spectrum.values[0].isfinite().any()
    torch.testing.assert_close(found.spectrum.values[1, :4], values[1, :4], rtol=1e-8, atol=1e-12)
