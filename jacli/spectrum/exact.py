"""All singular values of explicit matrices, in float64, each with a bound on its error.

The squared singular values of ``A`` are the eigenvalues of the Gram matrix of its smaller side,
``G = A A'`` of shape ``(n, n)``: one matrix product and a small eigenproblem, far cheaper than an SVD.
Squaring loses the small values: ``sigma`` is known to about ``eps sigma_1^2 / sigma``.  Samples in which that
matters are computed again by QR, ``A' = Q R``, and the SVD of the small ``R``, which is backward stable:
every ``sigma`` is known to about ``eps ||A||``.

Both need ``A`` only in slabs of columns (for QR: the tall-skinny QR of Demmel, Grigori, Hoemmen & Langou,
2012; 10.1137/080731992, as a chain).  The same code therefore serves matrices in memory and matrices read
from a file, and there is never a float64 copy of a whole matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PIECE_BYTES = 64 * 2**20
"""Largest float64 copy of a piece, in bytes."""

QR_BELOW = 1e-5
"""sigma_min / sigma_1 below which the Gram matrix loses too much: its square is 1e-10."""

SAFE_PEAK = 1e140
"""Matrices with an entry above this, or with no entry above its inverse, have squares outside of float64."""

EPS = torch.finfo(torch.float64).eps

Pieces = Callable[[], Iterable[Tensor]]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of a batch of matrices.

    Attributes:
        values: ``(batch, s)`` float64, decreasing; a row of NaN where the matrix is not finite.
        errors: ``(batch, s)`` float64, a bound on the absolute error of each value.
    """

    values: Tensor
    errors: Tensor


@torch.no_grad()
def singular_values(matrices: Tensor) -> Spectrum:
    """All ``min(n_out, n_in)`` singular values of each matrix, with a bound on each error.

    >>> matrix = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]])
    >>> spectrum = singular_values(matrix)
    >>> spectrum.values.round(decimals=6).tolist()
    [[4.0, 3.0]]
    >>> bool((spectrum.errors < 1e-12).all())
    True

    Args:
        matrices: ``(batch, n_out, n_in)``, any floating dtype, on any device with float64.

    Returns:
        ``(batch, min(n_out, n_in))`` values and errors, on the device of ``matrices``.

    Cost per matrix with sides n <= m: ``2 m n^2`` flops (Gram) and, only where sigma_min / sigma_1 < 1e-5,
    ``2 m n^2`` more (QR).  Memory beyond the input: a few times 64 MiB or a few ``(n, n)`` matrices,
    whichever is larger.

    Example:
        >>> import torch
        >>> singular_values(torch.diag(torch.tensor([2.0, 3.0]))[None]).values
        tensor([[3., 2.]], dtype=torch.float64)
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    batch, n, m = wide.shape
    if batch == 0 or n == 0:
        empty = torch.zeros(batch, n, dtype=torch.float64, device=matrices.device)
        return Spectrum(empty, empty.clone())
    parts = [_spectrum(columns_of(part), n) for part in wide.split(at_once(n * m))]
    return Spectrum(torch.cat([p.values for p in parts]), torch.cat([p.errors for p in parts]))


@torch.no_grad()
def streamed_singular_values(pieces: Pieces, n: int) -> Spectrum:
    """All singular values of one matrix that is read in pieces.

    >>> matrix = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    >>> streamed_singular_values(lambda: matrix.split(1, dim=1), n=2).values.round(decimals=6).tolist()
    [[4.0, 3.0]]

    Args:
        pieces: Called once, or twice if QR is needed; yields ``(n, m_i)`` pieces, in the same order each
            time, whose concatenation along the columns is the matrix or its transpose.
        n: Number of rows; take the smaller side of the matrix, which is cheaper.

    Returns:
        A batch of one: ``(1, min(n, sum m_i))``.

    Memory: a few ``(n, n)`` float64 matrices and, with QR, a few ``(n + m_i, n)``.
    """
    return _spectrum(lambda: (piece[None] for piece in pieces()), n)


def at_once(numbers: int) -> int:
    """How many items of ``numbers`` float64 numbers each fit in `PIECE_BYTES`; at least one.

    >>> at_once(1000), at_once(10**9)
    (8388, 1)
    """
    return max(1, PIECE_BYTES // (8 * numbers))


def columns_of(wide: Tensor) -> Pieces:
    """Split ``(batch, n, m)`` into pieces ``(batch, n, m_i)`` whose float64 copies fit in `PIECE_BYTES`.

    >>> [tuple(piece.shape) for piece in columns_of(torch.zeros(1, 1000, 20_000))()]
    [(1, 1000, 8388), (1, 1000, 8388), (1, 1000, 3224)]
    """
    batch, n, _ = wide.shape
    return lambda: wide.split(at_once(batch * n), dim=2)


def _spectrum(pieces: Pieces, n: int) -> Spectrum:
    """Singular values of a batch of matrices, given in pieces ``(batch, n, m_i)``."""
    gram, peaks, m = gram_of(pieces, n)
    peak = peaks.amax(dim=1)
    count = min(n, m)
    finite = peak.isfinite()
    gram[~(finite & (peak < SAFE_PEAK))] = 0.0  # LAPACK may raise, or not return, on NaN and infinity
    squared_norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    values = torch.linalg.eigvalsh(gram).flip(-1)[:, :count].clamp(min=0).sqrt()
    del gram
    errors = _gram_error(values, squared_norm, n, m)
    lost = values[:, -1] < QR_BELOW * values[:, 0] if count else torch.zeros_like(finite)
    extreme = (peak >= SAFE_PEAK) | ((peak > 0) & (peak <= 1 / SAFE_PEAK))
    again = (finite & (lost | extreme)).nonzero()[:, 0]
    if len(again):
        values[again], errors[again] = _by_qr(pieces, again, n, m)
    values[~finite] = math.nan
    errors[~finite] = math.nan
    return Spectrum(values, errors)


def gram_of(pieces: Pieces, n: int) -> tuple[Tensor, Tensor, int]:
    """Gram matrices ``(batch, n, n)``, largest magnitudes of rows ``(batch, n)`` or NaN, columns.

    >>> gram, largest, m = gram_of(columns_of(torch.tensor([[[3.0, 4.0], [0.0, -2.0]]])), n=2)
    >>> gram.tolist(), largest.tolist(), m
    ([[[25.0, -8.0], [-8.0, 4.0]]], [[4.0, 2.0]], 2)
    """
    gram = peaks = None
    m = 0
    for piece in pieces():
        part = piece.to(torch.float64)
        if part.shape[2] == 0:
            continue
        largest = torch.maximum(part.amax(dim=2), -part.amin(dim=2))
        if gram is None or peaks is None:
            gram, peaks = part @ part.mT, largest
        else:
            gram.baddbmm_(part, part.mT)
            peaks = torch.maximum(peaks, largest)
        m += part.shape[2]
    if gram is None or peaks is None:
        return torch.zeros(1, n, n, dtype=torch.float64), torch.zeros(1, n, dtype=torch.float64), 0
    return gram, peaks, m


def _gram_error(values: Tensor, squared_norm: Tensor, n: int, m: int) -> Tensor:
    """Bound on ``|values - sigma|`` of the Gram path, ``(batch, s)``.

    Summing m products errs by at most ``gamma ||a_i|| ||a_j||`` in entry (i, j), with ``gamma`` about
    ``sqrt(m) eps`` (rounding errors as random signs: Higham & Mary, 2019; the certain bound is
    ``m eps``, never met), hence by ``gamma ||A||_F^2`` in norm; the eigensolver adds about
    ``sqrt(n) eps ||G||``, also below that with n for m.  By Weyl each *squared* value is then off by at
    most ``delta``:  ``|s^2 - sigma^2| <= delta``.  Two consequences:  ``|s - sigma| = |s^2 - sigma^2| /
    (s + sigma) <= delta / s``,  and, since ``(s - sigma)^2 <= |s^2 - sigma^2|``,  ``|s - sigma| <=
    sqrt(delta)``.  The smaller of both is the bound.
    """
    delta = 2 * EPS * (math.sqrt(m) + math.sqrt(n)) * squared_norm[:, None]
    return (delta / torch.maximum(values, delta.sqrt())).nan_to_num(nan=0.0)  # 0 / 0: the zero matrix


def _by_qr(pieces: Pieces, samples: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Values and errors ``(len(samples), s)`` of some samples of the batch, by QR and the SVD of R.

    Householder QR and the SVD are backward stable: the computed values are those of ``A + E`` with
    ``||E||_F <= c eps sqrt(m + n) ||A||_F`` (Higham, 2002, theorem 19.4, with the square root for
    random signs), and by Weyl no singular value moves by more than ``||E||``.
    """
    rows = [r_factor(pieces, sample, n) for sample in samples.tolist()]
    values = torch.stack([torch.linalg.svdvals(r) for r in rows])
    largest = values[:, :1]  # divided out, so that squares of extreme values stay within float64
    norm = largest * torch.linalg.vector_norm(values / largest, dim=-1, keepdim=True)
    return values, (4 * EPS * math.sqrt(m + n) * norm).expand_as(values)


def r_factor(pieces: Pieces, sample: int, n: int) -> Tensor:
    """R of ``A' = Q R``, ``(min(n, m), n)``: each piece is stacked below the R of the pieces before it.

    One sample at a time: batched QR of many small matrices is slow on GPUs (pytorch #143281), and a single
    large sample already fills the memory.

    >>> wide = torch.randn(1, 2, 50, dtype=torch.float64)
    >>> r = r_factor(columns_of(wide), sample=0, n=2)
    >>> torch.allclose(r.mT @ r, wide[0] @ wide[0].mT)  # R'R = A A'
    True
    """
    r: Tensor | None = None
    for part in _parts_of(pieces, sample):
        stacked = part.mT if r is None else torch.cat([r, part.mT])
        # Not `torch.linalg.qr`, and freed at once: at n = 4096 each of these takes 130 MiB or more.
        del r
        factored = torch.geqrf(stacked).a
        del stacked
        r = factored[:n].triu()
        del factored
    if r is None:
        raise ValueError("a matrix without columns has no R factor")
    return r


def _parts_of(pieces: Pieces, sample: int) -> Iterator[Tensor]:
    """The pieces ``(n, m_i)`` of one sample in float64."""
    for piece in pieces():
        if piece.shape[2]:
            yield piece[sample].to(torch.float64)
