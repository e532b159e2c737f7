"""Singular values of explicit matrices against prescribed spectra, identities and their own error bounds."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from jacli.spectrum import exact
from jacli.spectrum.exact import singular_values, streamed_singular_values

SPECTRA = {
    "decaying to 1e-4": np.logspace(0, -4, 7),
    "decaying to 1e-8": np.logspace(0, -8, 7),
    "decaying to 1e-12": np.logspace(0, -12, 7),
    "clustered": np.array([1, 1 - 1e-7, 1 - 2e-7, 0.5, 0.5 - 1e-9, 0.1, 0.1]),
    "repeated": np.array([5.0, 5, 5, 2, 2, 1, 1]),
    "deficient": np.array([3.0, 2, 1, 0, 0, 0, 0]),
    "zero": np.zeros(7),
    "huge": np.logspace(160, 158, 7),
    "tiny": np.logspace(-160, -162, 7),
}


def with_spectrum(values: np.ndarray, n_in: int, *, batch: int = 2, seed: int = 0) -> Tensor:
    """``(batch, len(values), n_in)`` float64 matrices with these singular values, to rounding."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    left = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(batch, n_in, n, generator=generator, dtype=torch.float64)).Q
    return (left * torch.from_numpy(values)) @ right.mT


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectrum_within_error(name: str, wide: bool) -> None:
    expected = torch.from_numpy(SPECTRA[name])
    matrices = with_spectrum(SPECTRA[name], 60)
    found = singular_values(matrices if wide else matrices.mT)
    assert found.values.shape == found.errors.shape == (2, 7)
    assert (found.values.diff(dim=1) <= 0).all()
    rounding = 1e-15 * float(expected.max())  # of making the matrix
    assert ((found.values - expected).abs() <= found.errors + rounding).all()
    assert (found.errors <= 1e-9 * expected[0]).all(), "a bound this loose says nothing"


def test_float32_matrix_is_taken_as_given() -> None:
    matrices = with_spectrum(np.logspace(0, -6, 7), 60).float()
    expected = np.linalg.svd(matrices.double().numpy(), compute_uv=False)
    found = singular_values(matrices)
    assert (np.abs(found.values.numpy() - expected) <= found.errors.numpy() + 1e-15).all()


def test_small_values_keep_their_digits() -> None:
    found = singular_values(with_spectrum(np.logspace(0, -8, 7), 60))
    assert found.values[:, -1].numpy() == pytest.approx(1e-8, rel=1e-6)


def test_hilbert() -> None:
    i = torch.arange(1, 11, dtype=torch.float64)
    found = singular_values((1 / (i[:, None] + i - 1))[None])
    assert float(found.values[0, 0]) == pytest.approx(1.7519196702651775, rel=1e-14)
    assert abs(float(found.values[0, -1]) - 1.0931538193796658e-13) <= float(found.errors[0, -1])


def test_identities() -> None:
    matrices = torch.randn(3, 7, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rotation = torch.linalg.qr(
        torch.randn(7, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ).Q
    values = singular_values(matrices).values
    assert torch.allclose(values.square().sum(1), matrices.square().sum((1, 2)), rtol=1e-13)
    assert torch.allclose(singular_values(rotation @ matrices).values, values, rtol=1e-12)
    assert torch.allclose(singular_values(matrices.mT).values, values, rtol=1e-12)


def test_circular_convolution_by_fft() -> None:
    """Sedghi, Gupta & Long (2019): moduli of the kernel's transform."""
    n = 6
    kernel = torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    padded = torch.zeros(n, n, dtype=torch.float64)
    padded[:3, :3] = kernel
    matrix = torch.stack([padded.roll((i, j), (0, 1)).flatten() for i in range(n) for j in range(n)])
    expected = torch.fft.fft2(padded).abs().flatten().sort(descending=True).values
    assert torch.allclose(singular_values(matrix[None]).values[0], expected, rtol=1e-10, atol=1e-12)


def test_orthogonal_matrix_and_product_of_gaussians() -> None:
    generator = torch.Generator().manual_seed(4)
    orthogonal = torch.linalg.qr(torch.randn(1, 9, 9, generator=generator, dtype=torch.float64)).Q
    assert torch.allclose(
        singular_values(orthogonal).values, torch.ones(1, 9, dtype=torch.float64), rtol=1e-13
    )
    n = 400
    gaussian = torch.randn(2, n, n, generator=generator, dtype=torch.float64) / math.sqrt(n)
    squares = singular_values((gaussian[0] @ gaussian[1])[None]).values.square()
    assert float(squares.mean()) == pytest.approx(1, rel=0.05)
    assert float(squares.max()) == pytest.approx(6.75, rel=0.08)  # (L+1)^(L+1) / L^L, L = 2


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 5, 1), (2, 1, 1), (2, 3, 4), (2, 4, 3)])
def test_thin_shapes(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    expected = torch.linalg.svdvals(matrices.double())
    assert torch.allclose(singular_values(matrices).values, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 4, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    found = singular_values(torch.zeros(shape))
    assert found.values.shape == found.errors.shape == (shape[0], min(shape[1:]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_matrix_gives_nan_row_and_spares_the_others(value: float) -> None:
    matrices = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(6))
    expected = singular_values(matrices).values
    matrices[1, 2, 3] = value
    found = singular_values(matrices)
    assert found.values[1].isnan().all() and found.errors[1].isnan().all()
    assert torch.equal(found.values[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_input(dtype: torch.dtype) -> None:
    matrices = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(7)).to(dtype)
    assert torch.allclose(
        singular_values(matrices).values, torch.linalg.svdvals(matrices.double()), rtol=1e-12
    )


@pytest.mark.parametrize("name", ["decaying to 1e-4", "decaying to 1e-12", "deficient"])
def test_pieces_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = with_spectrum(SPECTRA[name], 60, batch=3)
    whole = singular_values(matrices)
    monkeypatch.setattr(exact, "PIECE_BYTES", 8 * 7 * 13)  # one sample at a time, 13 columns
    pieced = singular_values(matrices)
    assert ((whole.values - pieced.values).abs() <= whole.errors + pieced.errors).all()


@pytest.mark.parametrize("columns", [60, 4])
def test_streamed_matches_whole(columns: int) -> None:
    matrix = with_spectrum(SPECTRA["decaying to 1e-8"], 60, batch=1)[0, :, :columns]
    calls = 0

    def pieces() -> Iterator[Tensor]:
        nonlocal calls
        calls += 1
        yield from matrix.split(9, dim=1)

    found = streamed_singular_values(pieces, 7)
    expected = singular_values(matrix[None])
    assert found.values.shape == (1, min(7, columns))
    assert ((found.values - expected.values).abs() <= found.errors + expected.errors).all()
    assert calls == (2 if columns == 60 else 1), "small values must come from a second pass, by QR"


def test_streamed_without_columns() -> None:
    assert streamed_singular_values(list, 3).values.shape == (1, 0)
