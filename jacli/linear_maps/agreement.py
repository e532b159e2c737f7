"""Relative errors that neither NaN nor infinity can slip past: the one place where results are compared.

A guard reads ``not error <= tolerance``; the errors given here are never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 1e-300
"""Sizes below count as zero: a difference there is infinitely far in practice."""


def gaps(found: Tensor, reference: Tensor) -> Tensor:
    """``|found - reference|``, entry by entry, in float64.

    Two entries that are not finite agree, with a gap of 0, unless they are opposite infinities.  NaN agrees
    with an infinity, since ``0 * inf`` is NaN in one order of multiplication and infinite in another: a
    reverse pass gives NaN where a forward pass gives infinity.  A finite number and one that is not are
    infinitely far apart.

    >>> gaps(torch.tensor([1.5, torch.nan, torch.nan]), torch.tensor([1.0, torch.inf, 2.0])).tolist()
    [0.5, 0.0, inf]

    Args:
        found: Any shape.
        reference: The same shape.

    Returns:
        That shape; finite or infinite, never NaN.
    """
    found, reference = (_as_real(values).double() for values in (found, reference))
    alike = ~torch.isfinite(found) & ~torch.isfinite(reference) & (found != -reference)
    difference = (found - reference).abs().masked_fill(alike, 0)
    return difference.nan_to_num(nan=torch.inf, posinf=torch.inf)


def finite(values: Tensor) -> Tensor:
    """The values in float64 with zeros in place of those that are not finite.

    >>> finite(torch.tensor([1.5, torch.nan, torch.inf])).tolist()
    [1.5, 0.0, 0.0]
    """
    values = _as_real(values).double()
    return values.masked_fill(~torch.isfinite(values), 0)


def norms(values: Tensor) -> Tensor:
    """2-norm per sample, ``(batch, ...) -> (batch,)``, scaled so that no square leaves float64's range.

    >>> norms(2.0**600 * torch.tensor([[3.0, 4.0]], dtype=torch.float64)).item() / 2.0**600
    5.0
    """
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 0:
        return flat.new_zeros(len(flat), dtype=torch.float64)
    largest = flat.abs().amax(1)
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    scaled: Tensor = torch.linalg.vector_norm(flat / unit[:, None], dim=1)
    return unit * scaled


def ratios(gap: Tensor, size: Tensor) -> Tensor:
    """``gap / size``; 0 where the gap is 0, whatever the size.  Sizes that are not finite count as 0.

    >>> ratios(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 4.0])).tolist()
    [0.0, 0.25]
    """
    return torch.where(gap > 0, gap / finite(size).clamp(min=_SMALLEST), 0.0)


def relative_errors(found: Tensor, reference: Tensor, *, scale: Tensor | None = None) -> Tensor:
    """2-norm of the difference per sample, relative to the reference's or to ``scale`` where that is larger.

    >>> reference = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    >>> relative_errors(torch.tensor([[3.0, 4.5], [1.0, torch.nan]]), reference).tolist()
    [0.1, inf]

    Args:
        found: ``(batch, ...)``.
        reference: The same shape; entries that are not finite do not count for its norm.
        scale: ``(batch,)``: numbers that are small by cancellation are not held to their own size.

    Returns:
        ``(batch,)``, float64; infinite where one of the two is not finite and the other is (see `gaps`).
    """
    size = norms(finite(reference))
    if scale is not None:
        size = torch.maximum(size, finite(scale))
    return ratios(norms(gaps(found, reference)), size)


OUTPUTS_AGREE = 1e-4
"""Largest relative difference between the outputs of a graph and of the model on a batch: other kernels
of attention round otherwise (1e-6); a graph that lost a write or a branch is off by its size."""


def same_outputs(own: Tensor, traced: Tensor) -> bool:
    """Whether two batches of outputs are the same, each sample by its own scale.

    >>> own = torch.tensor([[1000.0, 1.0]])
    >>> same_outputs(own, own + 0.05), same_outputs(own, own + 0.2)  # 1e-4 of the largest output is 0.1
    (True, False)
    """
    if own.shape != traced.shape:
        return False
    own, traced = own.reshape(len(own), -1), traced.reshape(len(own), -1)
    gap = torch.linalg.vector_norm(gaps(traced, own), ord=torch.inf, dim=1)
    scale = torch.linalg.vector_norm(finite(own), ord=torch.inf, dim=1)
    return bool((gap <= OUTPUTS_AGREE * scale + 1e-30).all())


def _as_real(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values
