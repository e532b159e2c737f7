"""The leading singular triples of matrices in memory, or of their factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jacli.linear_maps import Matrices
from jacli.spectrum.exact import EPS
from jacli.spectrum.krylov import Triples, largest_singular_triples
from jacli.spectrum.ritz_triples import gap_angles

DECOMPOSED_SIDE = 384
"""Matrices with a side up to this, or of which a quarter of the triples is asked for, are decomposed
whole."""

RTOL = 1e-7
"""Error asked of a search in matrices, relative to the largest value: their products cost little."""


@torch.no_grad()
def triples_of_matrices(matrices: Matrices, k: int, *, seed: int = 0) -> Triples:
    """The k leading singular triples of each matrix.

    >>> from jacli.linear_maps import DenseMap
    >>> triples = triples_of_matrices(DenseMap(torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])), 1)
    >>> triples.values.tolist(), triples.right[0, :, 0].abs().tolist()
    ([[2.0]], [0.0, 1.0])

    Args:
        matrices: ``(batch, n_out, n_in)``, or their factors, which are not multiplied out for a search.
        k: How many; more than there are means all.
        seed: Of the random vectors of a search.

    Cost per matrix with sides n <= m: an SVD in float64, ``6 m n^2 + 20 n^3`` flops; where n is above 384 and
    k below n / 4, some dozen products with k vectors.
    """
    shorter = min(matrices.n_out, matrices.n_in)
    if shorter > DECOMPOSED_SIDE and 4 * k < shorter:
        return largest_singular_triples(matrices, k, rtol=RTOL, seed=seed, vectors_per_pass=k)
    parts = [_decomposed(matrix, k) for matrix in matrices.dense().split(1)]
    return Triples.joined(parts)


def _decomposed(matrix: Tensor, k: int) -> Triples:
    """By an SVD, which is backward stable: no value is off by more than ``c eps sqrt(m + n) ||A||_F``."""
    finite = bool(matrix.isfinite().all())
    double = matrix.to(torch.float64) if finite else torch.zeros_like(matrix, dtype=torch.float64)
    u, sigma, vh = torch.linalg.svd(double, full_matrices=False)
    norm = torch.linalg.vector_norm(sigma, dim=1, keepdim=True)
    errors = (4 * EPS * math.sqrt(sum(matrix.shape[1:])) * norm).expand_as(sigma)
    values, known = (sigma, errors) if finite else (sigma + math.nan, errors + math.nan)
    none = values.new_zeros(1)
    return Triples(
        values=values[:, :k],
        errors=known[:, :k],
        left=u[:, :, :k] + (0.0 if finite else math.nan),
        right=vh[:, :k].mT + (0.0 if finite else math.nan),
        vector_errors=gap_angles(values, known, none - math.inf)[:, :k],
        failure_probability=none,
        matvecs=none.to(torch.int64),
        gave_up=none.bool(),
    )
