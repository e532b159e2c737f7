"""Norms and singular values of ``J = A B`` from its factors A (left) and B (right), never forming J.

Where A is ``(n_out, r)`` and B ``(r, n_in)`` with small r, a *core* C of shape ``(n_out, r)`` with
``C C' = J J'`` has the row norms and the nonzero singular values of J.  Any *root* Y of ``B B'``,
``Y Y' = B B'``, gives a core, ``C = A Y``.

The root comes from the Gram matrix of B after its rows are scaled to norm 1, ``B = D U``:  ``U U' =
V Lambda V'``,  ``Y = D V Lambda^(1/2)``.  This scaling makes the condition number of B nearly the
smallest that any scaling of its rows can give (van der Sluis, 1969), so units that are nearly dead cost no
accuracy.  Dead units (rows of zeros in B, columns of zeros in A) add nothing to J: they have a 1 on the
diagonal of ``U U'`` and a 0 in D.

As in `exact`, the Gram matrix loses the small singular values of U.  Where ``sigma_min / sigma_1 < QR_BELOW``
the root is ``Y = R'`` of the QR ``B' = Q R``.  The choice depends on U, not on J: where `exact` would use QR
for the small values of J, this may use the Gram matrix, with up to ``1 / QR_BELOW`` times the error.  Both
read B in slabs of columns: at r = 512 and n_in = 150528 it takes 300 MB in float32, and there is never a
float64 copy of all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.spectrum.exact import (
    EPS,
    QR_BELOW,
    SAFE_PEAK,
    Spectrum,
    at_once,
    columns_of,
    gram_of,
    r_factor,
    singular_values,
)


@dataclass(frozen=True)
class Core:
    """Small matrices C with ``C C' = J J'``; class norms are ``vector_norm(matrices, dim=2)``.

    Attributes:
        matrices: ``(batch, n_out, min(r, n_in))`` float64; NaN where a factor or the core is not finite.
        error: ``(batch,)``, bound on ``|sigma_i(C) - sigma_i(J)|`` for every i.
        square_error: ``(batch,)``, bound on ``||C C' - J J'||``, hence on ``|sigma_i(C)^2 - sigma_i(J)^2|``:
            the better one for large singular values.
    """

    matrices: Tensor
    error: Tensor
    square_error: Tensor


@torch.no_grad()
def core_of_factors(left: Tensor, right: Tensor) -> Core:
    """The core of each sample's ``left @ right``.

    A column times a row has one singular value that is not zero, the product of their lengths:

    >>> left, right = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[0.0, 2.0, 0.0]]])
    >>> factored_singular_values(core_of_factors(left, right), n_in=3).values.round(decimals=6).tolist()
    [[10.0, 0.0]]

    Args:
        left: ``(batch, n_out, r)``, any floating dtype, on any device with float64.
        right: ``(batch, r, n_in)``, likewise.

    Cost per sample with r < n_in: ``2 n_in r^2`` flops, an eigenproblem of size r, and ``4 n_out r^2`` flops;
    only where U is ill-conditioned, ``2 n_in r^2`` more (QR).  With r >= n_in, J is no larger than the core
    and is the core.  Memory beyond the core: a few times 64 MiB or a few ``(r, r)`` and ``(n_out, r)``
    float64 matrices, whichever is larger.
    """
    batch, n_out, r = left.shape
    n_in = right.shape[2]
    if 0 in (batch, n_out, r, n_in):
        zeros = torch.zeros(batch, n_out, min(r, n_in), dtype=torch.float64, device=left.device)
        return Core(zeros, zeros.new_zeros(batch), zeros.new_zeros(batch))
    size = at_once(r * max(n_out, n_in))
    parts = [_core(a, b) for a, b in zip(left.split(size), right.split(size), strict=True)]
    return Core(
        torch.cat([p.matrices for p in parts]),
        torch.cat([p.error for p in parts]),
        torch.cat([p.square_error for p in parts]),
    )


@torch.no_grad()
def factored_singular_values(core: Core, n_in: int) -> Spectrum:
    """All ``min(n_out, n_in)`` singular values of each J; those beyond the core's are exactly zero.

    The error is the error of the core's own singular values plus their distance from those of J:  ``error``,
    or ``|s - sigma| = |s^2 - sigma^2| / (s + sigma) <= square_error / s``  where that is smaller.

    >>> left, right = torch.eye(3)[None, :, :1], torch.full((1, 1, 4), 2.0)  # rank 1, of a 3 x 4 matrix
    >>> factored_singular_values(core_of_factors(left, right), n_in=4).values.tolist()
    [[4.0, 0.0, 0.0]]
    """
    own = singular_values(core.matrices)
    of_core = torch.fmin(core.error[:, None], core.square_error[:, None] / own.values)  # fmin: no 0 / 0
    batch, known = own.values.shape
    beyond = own.values.new_zeros(batch, min(core.matrices.shape[1], n_in) - known)
    beyond[core.error.isnan()] = math.nan
    return Spectrum(torch.cat([own.values, beyond], dim=1), torch.cat([own.errors + of_core, beyond], dim=1))


def _core(left: Tensor, right: Tensor) -> Core:
    """The core of some samples of the batch; no factor is empty.

    Bounds, with W = A D, ``||U||_F^2 <= r`` and random signs of rounding errors as in `exact`:

    *Rounding.*  The product ``A Y`` errs by at most ``sqrt(r) eps |A| |Y|`` in each entry (Higham, 2002,
    section 3.5), which no scaling changes: by ``eps sqrt(r) ||W||_F ||U||_F <= eps r^(3/2) ||W||`` in norm.

    *Gram.*  As in `exact`, the scaled Gram matrix, its eigenvalues and its eigenvectors together make
    ``||Y Y' - U U'|| <= delta = 2 eps (sqrt(n_in) + sqrt(r)) r`` (Y here without D).  Hence
    ``||C C' - J J'|| <= ||W||^2 delta``.  The singular values of ``W Y`` are those of ``W (Y Y')^(1/2)``, by
    the polar decomposition, and ``||X^(1/2) - Z^(1/2)||`` is at most ``||X - Z|| / (sigma_min(X^(1/2)) +
    sigma_min(Z^(1/2)))`` (Schmitt, 1992; Higham, 2008, section 6.2) and at most ``||X - Z||^(1/2)`` (Bhatia,
    1997, theorem X.1.1):  by Weyl they move by at most ``||W|| delta / max(sigma_min(Y), sqrt(delta))``.

    *QR.*  Column i of B' is off by at most ``4 eps sqrt(n_in + r)`` of its own norm (Higham, 2002, theorem
    19.4, with the constant of `exact`), so ``A B`` by at most ``||W||`` times that times ``sqrt(r)``.
    """
    r, n_in = right.shape[1:]
    left = left.to(torch.float64)
    rounding = EPS * r**1.5
    by_qr = rounding + 4 * EPS * math.sqrt((n_in + r) * r)
    if n_in <= r:
        return _assemble(left, right.to(torch.float64), rounding, 0.0, 0.0)
    pieces = columns_of(right)
    gram, peaks, _ = gram_of(pieces, r)
    finite = peaks.isfinite().all(dim=1)
    squarable = ((peaks == 0) | ((peaks > 1 / SAFE_PEAK) & (peaks < SAFE_PEAK))).all(dim=1)
    gram[~squarable] = 0.0  # LAPACK may raise, or not return, on NaN and infinity
    root, values = _scaled_root(gram, (left != 0).any(dim=1))
    del gram
    delta = 2 * EPS * (math.sqrt(n_in) + math.sqrt(r)) * r
    root_error = delta / values[:, 0].clamp(min=math.sqrt(delta))
    gram_error = torch.full_like(root_error, delta)
    relative = torch.full_like(root_error, rounding)
    lost = values[:, 0] < QR_BELOW * values[:, -1]
    for sample in (finite & (lost | ~squarable)).nonzero()[:, 0].tolist():
        root[sample] = r_factor(pieces, sample, r).mT
        relative[sample], root_error[sample], gram_error[sample] = by_qr, 0.0, 0.0
    root[~finite] = math.nan
    return _assemble(left, root, relative, root_error, gram_error)


def _scaled_root(gram: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """``Y = D V Lambda^(1/2)`` and the singular values of U, increasing, from Gram matrices of B.

    Args:
        gram: ``(batch, r, r)``; overwritten.
        used: ``(batch, r)``, False for rows of B that add nothing to J.
    """
    norms = gram.diagonal(dim1=1, dim2=2).sqrt() * used
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    gram *= inverse[:, :, None]
    gram *= inverse[:, None]  # not by the product of both at once, which may overflow
    gram.diagonal(dim1=1, dim2=2).fill_(1.0)
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp(min=0).sqrt()
    return norms[:, :, None] * vectors * values[:, None], values


def _assemble(
    left: Tensor,
    root: Tensor,
    rounding: Tensor | float,
    root_error: Tensor | float,
    gram_error: Tensor | float,
) -> Core:
    """The core ``left @ root``.

    Args:
        left: ``(batch, n_out, r)``.
        root: ``(batch, r, s)``.
        rounding: Bound on the rounding error of the core, relative to ``||W||``; ``(batch,)`` or one number.
        root_error: The error that the root adds to it.
        gram_error: The error that it adds to the square, relative to ``||W||^2``.
    """
    matrices = left @ root
    peak = _peak(root, (2,))
    row_norms = peak * torch.linalg.vector_norm(root / peak, dim=2, keepdim=True)
    norm = _norm_bound(left * row_norms.mT)
    rounding = rounding * norm
    error = rounding + root_error * norm
    # The square of C + F differs from that of C by 2 ||F|| ||C|| to first order.
    square = 2 * rounding * torch.linalg.matrix_norm(matrices) + gram_error * norm * norm
    bad = ~matrices.flatten(1).isfinite().all(dim=1)
    matrices[bad] = math.nan
    return Core(matrices, error.masked_fill(bad, math.nan), square.masked_fill(bad, math.nan))


def _norm_bound(matrices: Tensor) -> Tensor:
    """Bounds ``(batch,)`` on the 2-norms, at most ``rank^(1/4)`` times them: ``||W||^4 <= ||W' W||_F^2``."""
    peak = _peak(matrices, (1, 2))
    scaled = matrices / peak
    norms: Tensor = torch.linalg.matrix_norm(scaled.mT @ scaled)
    return peak[:, 0, 0] * norms.sqrt()


def _peak(x: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Largest magnitude, 1 where all entries are zero; dividing by it keeps squares within float64."""
    peak = x.abs().amax(dim=dim, keepdim=True)
    return torch.where(peak == 0, 1.0, peak)
