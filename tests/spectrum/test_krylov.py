"""The k largest singular values by products with vectors: values, bounds, multiplicities, exhaustion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jacli.errors import UsageError
from jacli.linear_maps import DenseMap, FactoredMap
from jacli.spectrum import largest_singular_triples, triples_of_matrices
from jacli.spectrum.missed_values import failure_probability
from tests.spectrum.test_exact import SPECTRA, with_spectrum

MODERATE = [name for name in SPECTRA if name not in ("huge", "tiny")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("name", MODERATE)
def test_within_error_and_error_small(name: str, k: int, wide: bool, dtype: torch.dtype) -> None:
    matrices = with_spectrum(SPECTRA[name], 60).to(dtype)
    expected = torch.linalg.svdvals(matrices.double())[:, :k]
    found = largest_singular_triples(DenseMap(matrices if wide else matrices.mT), k)
    assert found.values.shape == (2, k)
    assert ((found.values - expected).abs() <= found.errors + 1e-15 * expected[:, :1]).all()
    assert (found.errors <= 3e-6 * expected[:, :1]).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_copy_of_a_repeated_value(seed: int) -> None:
    values = np.concatenate([[5.0, 5, 5], np.linspace(3, 0.1, 60)])
    found = largest_singular_triples(DenseMap(with_spectrum(values, 80, batch=2)), 4, seed=seed)
    assert found.values.numpy() == pytest.approx(np.tile([5.0, 5, 5, 3], (2, 1)), rel=1e-9)


def test_identity_breaks_down_at_once() -> None:
    identity = torch.eye(30, dtype=torch.float64).expand(2, 30, 30)
    found = largest_singular_triples(DenseMap(identity), 5)
    assert torch.allclose(found.values, torch.ones(2, 5, dtype=torch.float64), rtol=1e-13)


def test_stops_early_where_the_spectrum_decays() -> None:
    matrices = with_spectrum(np.logspace(0, -20, 200), 300, batch=1)
    products = 0

    class Counting(DenseMap):
        def jvp(self, tangents: torch.Tensor) -> torch.Tensor:
            nonlocal products
            products += 1
            assert tangents.shape[0] == 1
            return super().jvp(tangents)

    found = largest_singular_triples(Counting(matrices), 2)
    assert products < 30
    assert found.values[0, 1].item() == pytest.approx(10 ** (-20 / 199), rel=1e-9)


def test_limit_is_kept_and_the_error_says_so() -> None:
    matrices = with_spectrum(np.linspace(1, 0.9, 100), 120, batch=1)
    found = largest_singular_triples(DenseMap(matrices), 1, max_matvecs=6)
    error = (found.values - 1).abs()
    assert (error > 1e-6).all() and (error <= found.errors).all()


def test_a_limit_that_is_reached_as_it_converges_is_none() -> None:
    matrices = torch.cat(
        [with_spectrum(np.logspace(0, -20, 60), 80, batch=1), with_spectrum(np.ones(60), 80, batch=1)]
    )
    needed = (
        int(largest_singular_triples(DenseMap(matrices), 1, rtol=1e-3).matvecs.max()) - 6
    )  # of the search
    found = largest_singular_triples(DenseMap(matrices), 1, rtol=1e-3, max_matvecs=needed)
    assert not found.gave_up.any()
    assert largest_singular_triples(
        DenseMap(matrices), 1, rtol=1e-3, max_matvecs=needed - 2
    ).gave_up.tolist() == [
        True,
        False,
    ]


def test_samples_converge_at_their_own_pace() -> None:
    matrices = torch.cat([with_spectrum(np.linspace(1, 0.5, 40), 50, batch=1), torch.zeros(1, 40, 50)])
    found = largest_singular_triples(DenseMap(matrices), 3)
    expected = torch.linalg.svdvals(matrices)[:, :3]
    assert ((found.values - expected).abs() <= found.errors + 1e-14).all()


def test_not_finite_sample_gives_nan_and_spares_the_others() -> None:
    matrices = with_spectrum(SPECTRA["repeated"], 60, batch=3)
    matrices[1, 0, 0] = math.nan
    found = largest_singular_triples(DenseMap(matrices), 2)
    assert found.values[1].isnan().all() and found.errors[1].isnan().all()
    assert found.values[[0, 2]].numpy() == pytest.approx(np.full((2, 2), 5.0))


def test_rounding_of_the_map_is_in_the_error() -> None:
    """A map whose two directions are inconsistent by 1e-3 cannot give values to 1e-6."""

    class Rough(DenseMap):
        def jvp(self, tangents: torch.Tensor) -> torch.Tensor:
            return super().jvp(tangents) * (1 + 1e-3)

    matrices = with_spectrum(SPECTRA["repeated"], 60)
    found = largest_singular_triples(Rough(matrices), 7)
    expected = torch.from_numpy(SPECTRA["repeated"])
    assert ((found.values - expected).abs() <= found.errors).all()


def test_more_than_there_are_means_all() -> None:
    matrices = with_spectrum(SPECTRA["repeated"], 60)
    assert largest_singular_triples(DenseMap(matrices), 99).values.shape == (2, 7)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    found = largest_singular_triples(DenseMap(torch.zeros(shape)), 2)
    assert found.values.shape == (shape[0], min(2, *shape[1:]))


def test_none_asked_for() -> None:
    with pytest.raises(UsageError, match="k = 0"):
        largest_singular_triples(DenseMap(torch.zeros(1, 2, 2)), 0)


def graded(values: np.ndarray | torch.Tensor) -> DenseMap:
    """Diagonal matrices: every singular vector is a unit vector, and zeros stay zeros."""
    return DenseMap(torch.diag(torch.as_tensor(values, dtype=torch.float64))[None])


def test_what_a_start_cannot_see_is_found_by_a_fresh_one() -> None:
    """The start lies in an invariant subspace without the leading vector: its own residual is zero."""
    start = torch.zeros(1, 1, 20, dtype=torch.float64)
    start[0, 0, 1] = 1.0
    found = largest_singular_triples(graded(np.linspace(20, 1, 20)), 1, start=start, certify=1e-3)
    assert found.values.item() == pytest.approx(20.0, rel=1e-6)


def test_more_copies_of_a_value_than_asked_for() -> None:
    values = np.concatenate([np.full(9, 5.0), np.linspace(3, 0.1, 50)])
    found = largest_singular_triples(DenseMap(with_spectrum(values, 70)), 4, rtol=1e-9)
    assert found.values.numpy() == pytest.approx(np.full((2, 4), 5.0), rel=1e-9)
    assert (found.vector_errors == math.pi / 2).all()  # any vector of that space would do


def test_rank_below_k() -> None:
    values = np.concatenate([[3.0, 2.0], np.zeros(48)])
    found = largest_singular_triples(DenseMap(with_spectrum(values, 70)), 5)
    assert found.values.numpy() == pytest.approx(np.tile([3.0, 2, 0, 0, 0], (2, 1)), abs=3e-6)


@pytest.mark.parametrize("shape", [(2, 30, 50), (2, 50, 30)])
def test_vectors(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape, dtype=torch.float64)
    found = largest_singular_triples(DenseMap(matrices), 4, rtol=1e-8)
    u, _, v = torch.linalg.svd(matrices)
    for own, reference in ((found.left, u[:, :, :4]), (found.right, v[:, :4].mT)):
        across = own - reference * (own * reference).sum(1, keepdim=True)
        assert (torch.linalg.vector_norm(across, dim=1).asin() <= found.vector_errors + 1e-14).all()
        assert torch.allclose(own.mT @ own, torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(matrices @ found.right, found.left * found.values[:, None], atol=1e-7)
    assert (found.vector_errors < 1e-5).all()


def test_a_shard_draws_what_the_whole_run_draws() -> None:
    matrices = with_spectrum(np.linspace(1, 0.5, 60), 80, batch=4)
    whole = largest_singular_triples(DenseMap(matrices), 3)
    alone = largest_singular_triples(DenseMap(matrices[2:3]), 3, samples=[2])
    assert torch.allclose(whole.values[2:3], alone.values, rtol=1e-12)
    assert torch.allclose(whole.left[2:3], alone.left, atol=1e-3)
    assert whole.matvecs[2] == alone.matvecs[0]


@pytest.mark.parametrize("shrink", [True, False])
def test_restarts_within_few_basis_vectors(shrink: bool) -> None:
    matrices = with_spectrum(np.linspace(1, 0.2, 150), 200)
    found = largest_singular_triples(DenseMap(matrices), 2, max_basis=12, rtol=1e-7, shrink=shrink)
    assert found.values.numpy() == pytest.approx(np.tile([1.0, 1 - 0.8 / 149], (2, 1)), rel=1e-9)


def test_samples_that_are_done_leave_the_passes() -> None:
    counts: list[int] = []

    class Counting(DenseMap):
        def vjp(self, cotangents: torch.Tensor) -> torch.Tensor:
            counts.append(cotangents.shape[1])
            return super().vjp(cotangents)

        def take(self, samples: torch.Tensor | slice) -> DenseMap:
            return Counting(self.matrices[samples])

    easy, hard = (
        with_spectrum(np.logspace(0, -9, 60), 80, batch=3),
        with_spectrum(np.linspace(1, 0.9, 60), 80, batch=1),
    )
    found = largest_singular_triples(Counting(torch.cat([easy, hard])), 1)
    assert counts[0] == 4 and counts.count(1) > 5
    assert (found.matvecs[:3] < found.matvecs[3]).all()


def test_certified_to_a_probability() -> None:
    matrices = with_spectrum(np.concatenate([[2.0], np.linspace(1, 0.1, 299)]), 320)
    found = largest_singular_triples(DenseMap(matrices), 1, rtol=1e-3, certify=1e-3)
    assert (found.failure_probability <= 1e-3).all() and (found.failure_probability > 0).all()
    more = largest_singular_triples(DenseMap(matrices), 1, rtol=1e-3, certify=1e-9)
    assert (more.failure_probability <= 1e-9).all() and (more.matvecs > found.matvecs).all()


def test_every_value_of_a_small_space_is_certain() -> None:
    found = largest_singular_triples(DenseMap(with_spectrum(np.linspace(1, 0.9, 5), 8)), 4, certify=1e-3)
    assert (found.failure_probability == 0).all()


def test_failure_probability_is_no_smaller_than_failures_are_frequent() -> None:
    """Lanczos from one random vector, on the spectrum that hides its largest value best: two clusters."""
    dimension, steps, trials = 200, 6, 2000
    squares = torch.cat(
        [torch.ones(1), 0.9 * torch.ones(1), torch.linspace(0.8, 0.0, dimension - 2)]
    ).double()
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(trials, dimension, generator=generator, dtype=torch.float64)
    space = torch.stack([start * squares**power for power in range(steps)], dim=2)
    basis = torch.linalg.qr(space)[0]
    seen = torch.linalg.eigvalsh(basis.mT @ (squares[:, None] * basis))[:, -1].sqrt()
    for share in (0.5, 0.7, 0.9, 0.99):
        small = seen <= share
        stated = failure_probability(torch.tensor([share]), torch.tensor([1.0]), steps, dimension).item()
        assert small.double().mean().item() <= stated


FAMILIES = {
    "decaying": np.logspace(0, -6, 48),
    "slowly decaying": 1 / np.arange(1, 49),
    "clustered": np.concatenate([1 - 1e-4 * np.arange(4), np.linspace(0.5, 0.1, 44)]),
    "repeated": np.concatenate([[1, 1, 1, 0.7, 0.7], np.linspace(0.6, 0.1, 43)]),
    "deficient": np.concatenate([np.linspace(1, 0.3, 6), np.zeros(42)]),
}


@pytest.mark.parametrize("reduced_start", [False, True], ids=["ieee", "reduced start"])
@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("family", [*FAMILIES, "hilbert"])
def test_bounds_hold_in_random_trials(family: str, k: int, reduced_start: bool) -> None:
    """42 matrices of each kind, 1,008 in all: certified ones have the i-th value within its bound."""
    if family == "hilbert":
        numbers = torch.arange(48, dtype=torch.float64)
        rotation = torch.linalg.qr(torch.randn(42, 48, 48, dtype=torch.float64))[0]
        exact = rotation / (numbers[:, None] + numbers + 1)
    else:
        exact = with_spectrum(FAMILIES[family], 64, batch=42)
    matrices = exact.to(torch.float32)
    start = None
    if reduced_start:
        rough = largest_singular_triples(DenseMap(matrices.bfloat16().float()), k, rtol=1e-2)
        start = rough.left.mT
    found = largest_singular_triples(
        DenseMap(matrices), k, rtol=1e-3, certify=1e-3, start=start, seed=1, vectors_per_pass=4
    )
    expected = torch.linalg.svdvals(matrices.double())[:, :k]
    assert (found.failure_probability <= 1e-3).all()
    assert ((found.values - expected).abs() <= found.errors).all()
    assert (found.errors <= 2.5e-3 * expected[:, :1]).all()


@pytest.mark.parametrize("scale", [1e150, 1e-150, 1e-200, 1.0])
@pytest.mark.parametrize("k", [1, 5, 30])
def test_values_whose_squares_leave_float64(scale: float, k: int) -> None:
    """One of the samples has ordinary values."""
    matrices = with_spectrum(np.linspace(3, 1, 30), 50, batch=3)
    sizes = torch.tensor([scale, 1.0, scale], dtype=torch.float64)[:, None]
    found = largest_singular_triples(DenseMap(matrices * sizes[:, :, None]), k)
    expected = torch.linalg.svdvals(matrices)[:, :k]
    assert ((found.values / sizes - expected).abs() <= found.errors / sizes + 1e-14).all()
    assert (found.errors / sizes <= 1e-5).all() and (found.right.isfinite()).all()


@pytest.mark.parametrize("k", [1, 4, 40])
@pytest.mark.parametrize("name", MODERATE)
def test_triples_of_matrices_in_memory(name: str, k: int) -> None:
    matrices = with_spectrum(SPECTRA[name], 60)
    found = triples_of_matrices(DenseMap(matrices), k)
    expected = torch.linalg.svdvals(matrices)[:, :k]
    assert ((found.values - expected).abs() <= found.errors + 1e-15 * expected[:, :1]).all()
    assert (found.failure_probability == 0).all()
    size = float(expected.max())
    torch.testing.assert_close(
        matrices @ found.right, found.left * found.values[:, None], rtol=0, atol=3e-7 * size
    )


def test_triples_of_factors_and_of_what_is_not_finite() -> None:
    left, right = torch.randn(3, 30, 4, dtype=torch.float64), torch.randn(3, 4, 50, dtype=torch.float64)
    right[1, 0, 0] = math.nan
    found = triples_of_matrices(FactoredMap(left, right), 2)
    expected = torch.linalg.svdvals(left[[0, 2]] @ right[[0, 2]])[:, :2]
    torch.testing.assert_close(found.values[[0, 2]], expected)
    assert found.values[1].isnan().all() and found.right[1].isnan().all()
