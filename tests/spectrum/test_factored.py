"""Norms and singular values from factors against the product, prescribed spectra and the error bounds."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

from jacli.spectrum import exact, factored
from jacli.spectrum.exact import Spectrum, singular_values
from jacli.spectrum.factored import core_of_factors, factored_singular_values

N_OUT, R, N_IN = 9, 7, 60


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    """``(2, rows, columns)`` with orthonormal columns."""
    return torch.linalg.qr(random(2, rows, columns, seed=seed)).Q


def spectrum_of_factors(left: Tensor, right: Tensor) -> Spectrum:
    return factored_singular_values(core_of_factors(left, right), right.shape[2])


def rounding_of_product(left: Tensor, right: Tensor) -> Tensor:
    """``(batch, 1)``: what float64 makes uncertain in the reference, ``svdvals(left @ right)``."""
    size = torch.linalg.matrix_norm(left.double()) * torch.linalg.matrix_norm(right.double())
    return 4 * exact.EPS * size[:, None]


def check(left: Tensor, right: Tensor) -> Spectrum:
    """Shapes, order, bounds and class norms against the product formed in float64."""
    product = left.double() @ right.double()
    core = core_of_factors(left, right)
    found = factored_singular_values(core, right.shape[2])
    allowance = rounding_of_product(left, right)
    (batch, n_out, n_in), r = product.shape, left.shape[2]
    assert core.matrices.shape == (batch, n_out, min(r, n_in))
    assert core.matrices.dtype == torch.float64
    assert core.error.shape == core.square_error.shape == (batch,)
    assert found.values.shape == found.errors.shape == (batch, min(n_out, n_in))
    assert (found.values.diff(dim=1) <= 0).all()
    expected = torch.linalg.svdvals(product)
    assert ((found.values - expected).abs() <= found.errors + allowance).all()
    assert (found.values[:, r:] == 0).all() and (found.errors[:, r:] == 0).all()
    # Each of the two bounds of the core for itself, by its own LAPACK singular values.
    known = min(core.matrices.shape[1:])
    of_core = torch.linalg.svdvals(core.matrices)
    assert ((of_core - expected[:, :known]).abs() <= core.error[:, None] + allowance).all()
    squares = torch.linalg.matrix_norm(core.matrices @ core.matrices.mT - product @ product.mT, ord=2)
    assert (squares <= core.square_error + 2 * allowance[:, 0] * (expected[:, 0] + allowance[:, 0])).all()
    norms = torch.linalg.vector_norm(core.matrices, dim=2)
    assert ((norms - torch.linalg.vector_norm(product, dim=2)).abs() <= core.error[:, None] + allowance).all()
    return found


SHAPES = {
    "narrow": (2, N_OUT, R, N_IN),
    "r > n_out": (2, 5, R, N_IN),
    "r > n_in": (2, N_OUT, R, 4),
    "r > n_out > n_in": (2, 5, R, 3),
    "r = n_in": (2, N_OUT, R, R),
    "n_out > n_in > r": (2, 50, R, 30),
    "r = 1": (2, N_OUT, 1, N_IN),
    "one output": (2, 1, R, N_IN),
    "one input": (2, N_OUT, R, 1),
    "one number": (2, 1, 1, 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_random_factors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, n_out, r, n_in = shape
    left, right = random(batch, n_out, r).to(dtype), random(batch, r, n_in, seed=1).to(dtype)
    found = check(left, right)
    assert (found.errors <= 1e-11 * found.values[:, :1]).all(), "a bound this loose says nothing"


SPECTRA = {
    "flat": np.ones(R),
    "decaying to 1e-4": np.logspace(0, -4, R),
    "decaying to 1e-8": np.logspace(0, -8, R),
    "increasing from 1e-4": np.logspace(-4, 0, R),
    "deficient": np.array([3.0, 2, 1, 1, 0, 0, 0]),
    "zero": np.zeros(R),
}


@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "axes"])
@pytest.mark.parametrize("right_name", SPECTRA)
@pytest.mark.parametrize("left_name", SPECTRA)
def test_prescribed_spectra(left_name: str, right_name: str, mixed: bool) -> None:
    """Values s1 s2 of ``(U S1 Q')(Q S2 V')``; with Q = I it is the rows of the right factor that decay."""
    s1, s2 = torch.from_numpy(SPECTRA[left_name]), torch.from_numpy(SPECTRA[right_name])
    q = orthonormal(R, R, 2) if mixed else torch.eye(R, dtype=torch.float64)
    left = (orthonormal(N_OUT, R, 0) * s1) @ q.mT
    right = (q * s2) @ orthonormal(N_IN, R, 1).mT
    found = check(left, right)
    expected = torch.zeros(N_OUT, dtype=torch.float64)
    expected[:R] = (s1 * s2).sort(descending=True).values
    assert ((found.values - expected).abs() <= found.errors + rounding_of_product(left, right)).all()
    assert (found.errors <= 1e-9 * s1.max() * s2.max()).all(), "a bound this loose says nothing"


def test_small_values_of_the_right_factor_keep_their_digits() -> None:
    q = orthonormal(R, R, 2)
    s2 = torch.logspace(0, -8, R, dtype=torch.float64)
    left, right = orthonormal(N_OUT, R, 0) @ q.mT, (q * s2) @ orthonormal(N_IN, R, 1).mT
    found = spectrum_of_factors(left, right)
    assert found.values[0, :R].numpy() == pytest.approx(s2.numpy(), rel=1e-6)
    assert float(found.errors.max()) < 1e-12


@pytest.mark.parametrize(("closeness", "count"), [(1, 20), (1e-4, 19)])
def test_as_accurate_as_the_dense_path(closeness: float, count: int) -> None:
    """Two nearly parallel units cost digits of the smallest value (QR comes later), not of the others."""
    left, right = random(1, 40, 20), random(1, 20, 3000, seed=1)
    right[:, 3] = right[:, 4] + closeness * right[:, 3]
    found, dense = spectrum_of_factors(left, right), singular_values(left @ right)
    assert (found.errors[:, :count] <= 100 * dense.errors[:, :count]).all()
    assert found.values[0, :count].numpy() == pytest.approx(dense.values[0, :count].numpy(), rel=1e-13)
    difference = (found.values[0, 19] - dense.values[0, 19]).abs()
    assert float(difference) <= min(float(found.errors[0, 19]), 1e-10 * float(found.values[0, 0]))


def test_hilbert() -> None:
    """The Hilbert matrix as the right factor, mirrored to twice its width: sqrt(2) times its values."""
    i = torch.arange(1, 11, dtype=torch.float64)
    hilbert = (1 / (i[:, None] + i - 1))[None]
    found = spectrum_of_factors(
        torch.eye(10, dtype=torch.float64)[None], torch.cat([hilbert, hilbert], dim=2)
    )
    assert float(found.values[0, 0]) == pytest.approx(math.sqrt(2) * 1.7519196702651775, rel=1e-14)
    smallest = math.sqrt(2) * 1.0931538193796658e-13
    assert abs(float(found.values[0, -1]) - smallest) <= float(found.errors[0, -1]) <= 1e-12


def test_batch_of_different_conditions() -> None:
    left, right = random(5, N_OUT, R), random(5, R, N_IN, seed=1)
    right[1, 2] = right[1, 3] * (1 + 1e-9)
    right[2, 4] = 0
    right[3] = 0
    right[4, :2] *= 1e-9
    found = check(left, right)
    for sample in range(5):
        alone = spectrum_of_factors(left[sample, None], right[sample, None])
        errors = found.errors[sample] + alone.errors[0]
        assert ((found.values[sample] - alone.values[0]).abs() <= errors).all()


def no_qr(*arguments: object) -> NoReturn:
    raise AssertionError("QR of the right factor")


@pytest.mark.parametrize(
    "scales",
    [[1, 0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0, 0], [0] * R, [1, 1e-3, 1e-6, 1e-9, 1e-12, 0, 1e-30]],
    ids=["dead", "all but one dead", "all dead", "nearly dead"],
)
def test_dead_units_need_no_qr(monkeypatch: pytest.MonkeyPatch, scales: list[float]) -> None:
    monkeypatch.setattr(factored, "r_factor", no_qr)
    right = random(2, R, N_IN, seed=1) * torch.tensor(scales, dtype=torch.float64)[:, None]
    check(random(2, N_OUT, R), right)


def test_units_that_reach_no_output_need_no_qr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factored, "r_factor", no_qr)
    left, right = random(2, N_OUT, R), random(2, R, N_IN, seed=1)
    left[:, :, 2] = 0
    right[:, 2] = right[:, 3]
    check(left, right)


def test_parallel_units_do_need_qr(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = random(2, N_OUT, R), random(2, R, N_IN, seed=1)
    right[1, 2] = right[1, 3]
    samples: list[int] = []

    def counted(pieces: exact.Pieces, sample: int, n: int) -> Tensor:
        samples.append(sample)
        return exact.r_factor(pieces, sample, n)

    monkeypatch.setattr(factored, "r_factor", counted)
    check(left, right)
    assert samples == [1], "only the sample that needs it"


def test_zero_factors() -> None:
    zero, some = torch.zeros(2, N_OUT, R), random(2, R, N_IN).float()
    for left, right in [(zero, some), (zero + 1, some * 0), (zero, some * 0)]:
        found = spectrum_of_factors(left, right)
        assert (found.values == 0).all() and (found.errors == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 2, 5), (2, 0, 2, 5), (2, 3, 0, 5), (2, 3, 2, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    batch, n_out, r, n_in = shape
    core = core_of_factors(torch.ones(batch, n_out, r), torch.ones(batch, r, n_in))
    found = factored_singular_values(core, n_in)
    assert core.matrices.shape == (batch, n_out, min(r, n_in))
    assert found.values.shape == found.errors.shape == (batch, min(n_out, n_in))
    assert (found.values == 0).all() and (found.errors == 0).all()


@pytest.mark.parametrize("n_in", [N_IN, 4])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["left", "right", "dead row", "unused row"])
def test_not_finite_sample_gives_nan_and_spares_the_others(where: str, value: float, n_in: int) -> None:
    left, right = random(3, N_OUT, R), random(3, R, n_in, seed=1)
    expected = core_of_factors(left[[0, 2]], right[[0, 2]])
    if where == "left":
        left[1, 2, 3] = value
    else:
        right[1, 2] *= 0 if where == "dead row" else 1
        right[1, 2, 3] = value
        left[1, :, 2] *= 0 if where == "unused row" else 1
    core = core_of_factors(left, right)
    found = factored_singular_values(core, n_in)
    for bad in (core.matrices, core.error, core.square_error, found.values, found.errors):
        assert bad[1].isnan().all()
    assert torch.allclose(core.matrices[[0, 2]], expected.matrices, rtol=1e-12, atol=1e-12)
    assert found.values[[0, 2]].isfinite().all() and found.errors[[0, 2]].isfinite().all()


@pytest.mark.parametrize("n_in", [N_IN, 4])
@pytest.mark.parametrize(
    ("of_left", "of_right"), [(1, 1e160), (1, 1e-160), (1e-200, 1e200), (1e160, 1e-160), (1e-160, 1)]
)
def test_extreme_scales(of_left: float, of_right: float, n_in: int) -> None:
    """The values scale, although their squares are outside of float64."""
    left, right = random(2, N_OUT, R), random(2, R, n_in, seed=1)
    scaled = spectrum_of_factors(of_left * left, of_right * right)
    expected = torch.linalg.svdvals(left @ right)
    scale = of_left * of_right
    assert torch.allclose(scaled.values / scale, expected, rtol=1e-10, atol=1e-11)
    assert (scaled.errors <= 1e-10 * scaled.values[:, :1]).all()


def test_rows_of_extreme_scales_are_not_taken_for_zero() -> None:
    left, right = random(2, N_OUT, R), random(2, R, N_IN, seed=1)
    expected = torch.linalg.svdvals(left @ right)
    left[:, :, 1] *= 1e200
    right[:, 1] *= 1e-200
    assert torch.allclose(spectrum_of_factors(left, right).values, expected, rtol=1e-10, atol=1e-11)


def test_overflowing_product_is_not_finite() -> None:
    found = spectrum_of_factors(1e200 * random(2, N_OUT, R), 1e200 * random(2, R, N_IN, seed=1))
    assert found.values.isnan().all() and found.errors.isnan().all()


@pytest.mark.parametrize("parallel", [False, True], ids=["gram", "qr"])
def test_right_factor_is_converted_in_pieces(parallel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = random(3, N_OUT, R).float(), random(3, R, N_IN, seed=1).float()
    if parallel:
        right[:, 2] = right[:, 3]
    whole = spectrum_of_factors(left, right)
    piece_bytes = 8 * R * 13  # one sample at a time, 13 columns
    monkeypatch.setattr(exact, "PIECE_BYTES", piece_bytes)
    converted: list[int] = []
    to = Tensor.to

    def recorded(tensor: Tensor, *arguments: object) -> Tensor:
        if tensor.dtype == torch.float32 and tensor.shape[-2] == R:
            converted.append(8 * tensor.numel())
        return to(tensor, *arguments)

    monkeypatch.setattr(Tensor, "to", recorded)
    pieced = spectrum_of_factors(left, right)
    assert len(converted) == 3 * 5 * (2 if parallel else 1)
    assert max(converted) <= piece_bytes
    assert ((whole.values - pieced.values).abs() <= whole.errors + pieced.errors).all()


def test_identities() -> None:
    left, right = random(2, N_OUT, R), random(2, R, N_IN, seed=1)
    mixing = random(R, R, seed=2)
    core, found = core_of_factors(left, right), spectrum_of_factors(left, right)
    assert torch.allclose(core.matrices @ core.matrices.mT, left @ (right @ right.mT) @ left.mT, rtol=1e-11)
    frobenius = torch.linalg.matrix_norm(core.matrices)
    assert torch.allclose(torch.linalg.vector_norm(found.values, dim=1), frobenius, rtol=1e-13)
    other = spectrum_of_factors(left @ torch.linalg.inv(mixing), mixing @ right)
    assert torch.allclose(other.values, found.values, rtol=1e-9)
    halves = spectrum_of_factors(left, torch.cat([right, right], dim=2) / math.sqrt(2))
    assert torch.allclose(halves.values, found.values, rtol=1e-12)
    split = spectrum_of_factors(torch.cat([left, left], dim=2) / 2, torch.cat([right, right], dim=1))
    assert torch.allclose(split.values, found.values, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ["gram", "qr", "direct"])
def test_class_norms_against_rational_arithmetic(case: str) -> None:
    """No rounding in the reference: the core's bound must cover all of its own."""
    left, right = random(1, N_OUT, R), random(1, R, 5 if case == "direct" else 20, seed=1)
    if case == "qr":
        right[:, 2] = right[:, 3]
    core = core_of_factors(left, right)
    a, b = ([[Fraction(x) for x in row] for row in factor[0].tolist()] for factor in (left, right))
    for i, row in enumerate(a):
        product = [sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)]
        square = sum(x * x for x in product)
        error = Fraction(float(core.error[0]))
        # fsum: the norm of a row of the core to its last digit
        norm = Fraction(math.sqrt(math.fsum(x * x for x in core.matrices[0, i].tolist())))
        assert (norm - error) ** 2 <= square <= (norm + error) ** 2
    assert float(core.error[0]) < 1e-11
