"""The k largest singular values by products with vectors: values, bounds, multiplicities, exhaustion."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jacli.errors import UsageError
from jacli.linear_map import DenseMap
from jacli.spectrum import largest_singular_values
from tests.spectrum.test_exact import SPECTRA, with_spectrum

MODERATE = [name for name in SPECTRA if name not in ("huge", "tiny")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("name", MODERATE)
def test_within_error_and_error_small(name: str, k: int, wide: bool, dtype: torch.dtype) -> None:
    matrices = with_spectrum(SPECTRA[name], 60).to(dtype)
    expected = torch.linalg.svdvals(matrices.double())[:, :k]
    found = largest_singular_values(DenseMap(matrices if wide else matrices.mT), k)
    assert found.values.shape == (2, k)
    assert ((found.values - expected).abs() <= found.errors + 1e-15 * expected[:, :1]).all()
    assert (found.errors <= 3e-6 * expected[:, :1]).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_copy_of_a_repeated_value(seed: int) -> None:
    values = np.concatenate([[5.0, 5, 5], np.linspace(3, 0.1, 60)])
    found = largest_singular_values(DenseMap(with_spectrum(values, 80, batch=2)), 4, seed=seed)
    assert found.values.numpy() == pytest.approx(np.tile([5.0, 5, 5, 3], (2, 1)), rel=1e-9)


def test_identity_breaks_down_at_once() -> None:
    identity = torch.eye(30, dtype=torch.float64).expand(2, 30, 30)
    found = largest_singular_values(DenseMap(identity), 5)
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

    found = largest_singular_values(Counting(matrices), 2)
    assert products < 30
    assert found.values[0, 1].item() == pytest.approx(10 ** (-20 / 199), rel=1e-9)


def test_limit_is_kept_and_the_error_says_so() -> None:
    matrices = with_spectrum(np.linspace(1, 0.9, 100), 120, batch=1)
    found = largest_singular_values(DenseMap(matrices), 1, max_matvecs=6)
    error = (found.values - 1).abs()
    assert (error > 1e-6).all() and (error <= found.errors).all()


def test_samples_converge_at_their_own_pace() -> None:
    matrices = torch.cat([with_spectrum(np.linspace(1, 0.5, 40), 50, batch=1), torch.zeros(1, 40, 50)])
    found = largest_singular_values(DenseMap(matrices), 3)
    expected = torch.linalg.svdvals(matrices)[:, :3]
    assert ((found.values - expected).abs() <= found.errors + 1e-14).all()


def test_not_finite_sample_gives_nan_and_spares_the_others() -> None:
    matrices = with_spectrum(SPECTRA["repeated"], 60, batch=3)
    matrices[1, 0, 0] = math.nan
    found = largest_singular_values(DenseMap(matrices), 2)
    assert found.values[1].isnan().all() and found.errors[1].isnan().all()
    assert found.values[[0, 2]].numpy() == pytest.approx(np.full((2, 2), 5.0))


def test_rounding_of_the_map_is_in_the_error() -> None:
    """A map whose two directions are inconsistent by 1e-3 cannot give values to 1e-6."""

    class Rough(DenseMap):
        def jvp(self, tangents: torch.Tensor) -> torch.Tensor:
            return super().jvp(tangents) * (1 + 1e-3)

    matrices = with_spectrum(SPECTRA["repeated"], 60)
    found = largest_singular_values(Rough(matrices), 7)
    expected = torch.from_numpy(SPECTRA["repeated"])
    assert ((found.values - expected).abs() <= found.errors).all()


def test_more_than_there_are_means_all() -> None:
    matrices = with_spectrum(SPECTRA["repeated"], 60)
    assert largest_singular_values(DenseMap(matrices), 99).values.shape == (2, 7)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    found = largest_singular_values(DenseMap(torch.zeros(shape)), 2)
    assert found.values.shape == (shape[0], min(2, *shape[1:]))


def test_none_asked_for() -> None:
    with pytest.raises(UsageError, match="k = 0"):
        largest_singular_values(DenseMap(torch.zeros(1, 2, 2)), 0)
