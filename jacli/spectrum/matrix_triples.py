"""The leading singular triples of matrices in memory, or of their factors."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jacli.linear_maps import Matrices
from jacli.plans.plan import SINGULAR_VALUES_LIMIT
from jacli.spectrum.exact import at_once, columns_of, gram_of
from jacli.spectrum.krylov import Triples, largest_singular_triples

RTOL = 1e-7
"""Error asked for, relative to the largest value: products with matrices cost little."""

CERTIFIED = 1e-3
"""Failure probability asked for where the matrices are too large to be decomposed."""


@torch.no_grad()
def triples_of_matrices(matrices: Matrices, k: int, *, seed: int = 0) -> Triples:
    """The k leading singular triples of each matrix.

    The eigenvectors of its Gram matrix are where the search (`jacli.spectrum.krylov`) begins and, mostly,
    ends; it takes from them what squaring has cost.  The decomposition misses nothing.

    >>> from jacli.linear_maps import DenseMap
    >>> triples = triples_of_matrices(DenseMap(torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])), 1)
    >>> triples.values.round(decimals=6).tolist(), triples.failure_probability.tolist()
    ([[2.0]], [0.0])

    Args:
        matrices: ``(batch, n_out, n_in)``, or their factors.
        k: How many; more than there are means all.
        seed: Of random vectors.

    Cost per matrix with sides n <= m: ``2 m n^2 + 10 n^3`` flops where n is at most 4096, and some dozen
    products with k vectors.
    """
    if min(matrices.n_out, matrices.n_in) > SINGULAR_VALUES_LIMIT:
        return largest_singular_triples(
            matrices, k, rtol=RTOL, seed=seed, vectors_per_pass=k, certify=CERTIFIED
        )
    start = _leading_eigenvectors(matrices.dense(), k)
    triples = largest_singular_triples(matrices, k, rtol=RTOL, seed=seed, vectors_per_pass=k, start=start)
    return replace(triples, failure_probability=torch.zeros_like(triples.failure_probability))


def _leading_eigenvectors(dense: Tensor, k: int) -> Tensor:
    """Of the Gram matrices of the shorter sides, ``(batch, k, n)`` float64."""
    wide = dense if dense.shape[1] <= dense.shape[2] else dense.mT
    parts = []
    for part in wide.split(at_once(max(1, wide.shape[1] * wide.shape[2]))):
        gram, _, _ = gram_of(columns_of(part), part.shape[1])
        gram[~gram.isfinite().flatten(1).all(dim=1)] = 0.0  # LAPACK may raise, or not return, on NaN
        parts.append(torch.linalg.eigh(gram).eigenvectors.flip(2).mT[:, :k])
    return torch.cat(parts)
