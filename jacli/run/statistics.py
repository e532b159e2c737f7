"""Norms and singular values of a batch, while it is on the device: from matrices, or from their factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_maps import FactoredMap, Matrices
from jacli.plans.plan import SINGULAR_VALUES_LIMIT, Plan
from jacli.spectrum import (
    Spectrum,
    core_of_factors,
    factored_singular_values,
    largest_singular_triples,
    singular_values,
)
from jacli.spectrum.exact import PIECE_BYTES


@dataclass(frozen=True)
class BatchStatistics:
    """Norms and singular values of every sample of a batch, in float64.

    Attributes:
        class_norms: ``(batch, n_out)``, 2-norm of each row.
        frobenius: ``(batch,)``.
        spectrum: The singular values the plan asks for; None if it asks for none.
    """

    class_norms: Tensor
    frobenius: Tensor
    spectrum: Spectrum | None


def statistics_of(matrices: Matrices, plan: Plan, *, seed: int) -> BatchStatistics:
    """Norms and the planned singular values of a batch.

    All singular values come from Gram matrices, of the factors where there are factors: the product is
    not formed.  Few of a large matrix come from products with vectors.

    >>> from jacli.linear_maps import DenseMap
    >>> from jacli.options.methods import METHODS
    >>> from jacli.plans.plan import WholePlan
    >>> plan = WholePlan(filled_by=METHODS["loop"], vectors_per_pass=1, why="", batch_size=1)
    >>> statistics_of(DenseMap(torch.tensor([[[3.0, 4.0]]])), plan, seed=0).frobenius.tolist()
    [5.0]

    Args:
        matrices: ``(batch, n_out, n_in)``.
        plan: How many singular values.
        seed: Starts the Lanczos vectors.
    """
    every = min(matrices.n_out, matrices.n_in) <= SINGULAR_VALUES_LIMIT or plan.all_singular_values
    spectrum: Spectrum | None = None
    if isinstance(matrices, FactoredMap):
        core = core_of_factors(matrices.left, matrices.right)
        class_norms = torch.linalg.vector_norm(core.matrices, dim=2)
        if plan.singular_values and every:
            spectrum = factored_singular_values(core, matrices.n_in)
    else:
        dense = matrices.dense()
        class_norms = _row_norms(dense)
        if plan.singular_values and every:
            spectrum = singular_values(dense)
    if plan.singular_values and spectrum is None:
        spectrum = largest_singular_triples(matrices, plan.singular_values, seed=seed)
    if spectrum is not None:
        k = plan.singular_values
        spectrum = Spectrum(spectrum.values[:, :k], spectrum.errors[:, :k])
    return BatchStatistics(class_norms, torch.linalg.vector_norm(class_norms, dim=1), spectrum)


def _row_norms(dense: Tensor) -> Tensor:
    """2-norms of the rows in float64, ``(batch, n_out)``; some rows at a time, since each is copied."""
    rows = max(1, PIECE_BYTES // (8 * max(1, len(dense)) * max(1, dense.shape[2])))
    parts = [torch.linalg.vector_norm(part, dim=2, dtype=torch.float64) for part in dense.split(rows, dim=1)]
    return torch.cat(parts, dim=1)
