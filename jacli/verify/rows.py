"""Random rows of a computed Jacobian against plain reverse passes.

A wrong batching rule does not raise (PReLU under ``vmap``: relative error 0.85), so whatever the
method, rows of the first block are compared with what `Linearization.pull` gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.linear_map import Linearization

N_ROWS = 4


def row_tolerance(dtype: torch.dtype) -> float:
    """Largest relative error of a right method: rounding leaves 1e-6 (1e-15), a wrong rule 0.1 and more."""
    return 1e-8 if dtype == torch.float64 else 1e-3


def row_error(linearization: Linearization, dense: Tensor, *, seed: int) -> float:
    """Worst relative error over the samples, on `N_ROWS` seeded rows; 0 where both are not finite.

    The scale is the larger of the reference rows' norm and the Jacobian's own: rows that are zero
    but for cancellation (a saturated softmax) do not count as wrong.

    Args:
        linearization: The map at the block the method was given.
        dense: What the method computed, ``(batch, n_out, n_in)``.
        seed: Chooses the rows.

    Cost: ``min(N_ROWS, n_out)`` reverse passes.
    """
    batch, n_out, _ = dense.shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n_out, generator=generator)[:N_ROWS]
    difference = torch.zeros(batch, dtype=torch.float64, device=dense.device)
    reference = torch.zeros_like(difference)
    for row in rows.tolist():
        cotangents = torch.zeros(batch, n_out, dtype=dense.dtype, device=dense.device)
        cotangents[:, row] = 1
        plain = linearization.pull(cotangents).double()
        computed = dense[:, row].double()
        both = ~torch.isfinite(plain) & ~torch.isfinite(computed)
        gap = (plain - computed).masked_fill(both, 0).nan_to_num(nan=torch.inf, posinf=torch.inf)
        difference += gap.square().sum(1)
        reference += plain.masked_fill(both, 0).square().sum(1)
    own = dense.flatten(1).square().nan_to_num(0, 0, 0).sum(1, dtype=torch.float64) * len(rows) / n_out
    scale = torch.maximum(reference, own)
    errors = torch.where(difference > 0, (difference / scale.clamp(min=1e-300)).sqrt(), 0.0)
    return float(errors.max())
