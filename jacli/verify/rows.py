"""Random rows of a computed Jacobian against plain reverse passes.

A wrong batching rule does not raise (PReLU under ``vmap``: relative error 0.85), so whatever the
method, rows of the first block are compared with what `Linearization.pull` gives.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.linear_map import Matrices
from jacli.verify.recheck import PASSES, ReversePasses

N_ROWS = 4


def row_tolerance(dtype: torch.dtype, precision: str = "ieee") -> float:
    """Largest relative error of a right method: rounding leaves 1e-6 (1e-15), a wrong rule 0.1 and more.

    Passes in a reduced precision are allowed what they leave (`PASSES`) besides.
    """
    return (1e-8 if dtype == torch.float64 else 1e-3) + PASSES[precision]


def row_error(linearization: ReversePasses, matrices: Matrices, *, seed: int) -> float:
    """Worst relative error over the samples, on seeded rows; 0 where both are not finite.

    The scale is the larger of the reference rows' norm and the Jacobian's own, ``||J||_F`` as estimated by
    ``||J' u||`` with a Gaussian u: rows that are zero but for cancellation (a saturated softmax) do not
    count as wrong.

    Args:
        linearization: The map at the block the method was given.
        matrices: What the method computed.
        seed: Chooses the rows.

    Cost: ``1 + min(N_ROWS, n_out)`` reverse passes.
    """
    batch, n_out = matrices.batch, matrices.n_out
    dtype, device = linearization.dtype, linearization.device
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(n_out, generator=generator)[:N_ROWS]
    image = linearization.pull(_gaussian(linearization, generator))
    own = image.double().square().nan_to_num(0, 0, 0).sum(1) * len(rows) / n_out
    computed = matrices.rows(rows.to(device)).double()
    difference = torch.zeros(batch, dtype=torch.float64, device=device)
    reference = torch.zeros_like(difference)
    for position, row in enumerate(rows.tolist()):
        cotangents = torch.zeros(batch, n_out, dtype=dtype, device=device)
        cotangents[:, row] = 1
        plain = linearization.pull(cotangents).double()
        both = ~torch.isfinite(plain) & ~torch.isfinite(computed[:, position])
        gap = (plain - computed[:, position]).masked_fill(both, 0)
        difference += gap.nan_to_num(nan=torch.inf, posinf=torch.inf).square().sum(1)
        reference += plain.masked_fill(both, 0).square().sum(1)
    scale = torch.maximum(reference, own)
    errors = torch.where(difference > 0, (difference / scale.clamp(min=1e-300)).sqrt(), 0.0)
    return float(errors.max())


def cotangent_error(linearization: ReversePasses, matrices: Matrices, *, seed: int) -> float:
    """Worst relative error over the samples of ``u'J``, u Gaussian; 0 where both are not finite.

    ``E ||u'E||^2 = ||E||_F^2`` for whatever error E, so that all rows are looked at in one pass; an error of
    one direction is seen a tenth as large as it is in 8 % of cases, and a wrong derivative is never so small.

    Args:
        linearization: The map at the block the method was given.
        matrices: What the method computed.
        seed: Of u.

    Cost: one reverse pass, and one product with the matrices.
    """
    cotangent = _gaussian(linearization, torch.Generator().manual_seed(seed))
    plain = linearization.pull(cotangent).double()
    computed = matrices.vjp(cotangent[None])[0].double()
    both = ~torch.isfinite(plain) & ~torch.isfinite(computed)
    gap = (plain - computed).masked_fill(both, 0).nan_to_num(nan=torch.inf, posinf=torch.inf)
    scale = torch.linalg.vector_norm(plain.masked_fill(both, 0), dim=1)
    difference = torch.linalg.vector_norm(gap, dim=1)
    return float(torch.where(difference > 0, difference / scale.clamp(min=1e-300), 0.0).max())


def _gaussian(linearization: ReversePasses, generator: torch.Generator) -> Tensor:
    """The same random cotangent for every sample, ``(batch, n_out)``."""
    cotangent = torch.randn(1, linearization.n_out, generator=generator, dtype=torch.float64)
    return cotangent.expand(linearization.batch, -1).to(linearization.device, linearization.dtype)
