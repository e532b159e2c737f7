"""Rows and columns of Jacobians: a linear map applied to unit vectors, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jacli.linear_map import Block, Linearization


def rows(
    linearization: Linearization, vjp: Callable[[Tensor], Tensor], *, chunk_size: int
) -> Iterator[Block]:
    """``chunk_size`` rows of every sample at a time.

    Args:
        linearization: What they are of.
        vjp: ``(k, batch, n_out) -> (k, batch, n_in)``.
        chunk_size: Most cotangents at once.
    """
    n_in = linearization.n_in
    for units, chosen in _units(linearization, linearization.n_out, chunk_size):
        yield Block(chosen, range(n_in), vjp(units).transpose(0, 1))


def columns(
    linearization: Linearization, jvp: Callable[[Tensor], Tensor], *, chunk_size: int
) -> Iterator[Block]:
    """``chunk_size`` columns of every sample at a time.

    Args:
        linearization: What they are of.
        jvp: ``(k, batch, n_in) -> (k, batch, n_out)``.
        chunk_size: Most tangents at once.
    """
    n_out = linearization.n_out
    for units, chosen in _units(linearization, linearization.n_in, chunk_size):
        yield Block(range(n_out), chosen, jvp(units).permute(1, 2, 0))


def _units(linearization: Linearization, n: int, chunk_size: int) -> Iterator[tuple[Tensor, range]]:
    """The unit vectors of n numbers, the same for every sample: ``(k, batch, n)`` and which."""
    for start in range(0, n, chunk_size):
        chosen = range(start, min(start + chunk_size, n))
        units = torch.zeros(
            len(chosen), linearization.batch, n, dtype=linearization.dtype, device=linearization.device
        )
        units.diagonal(offset=start, dim1=0, dim2=2).fill_(1)
        yield units, chosen
