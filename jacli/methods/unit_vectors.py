"""Rows and columns of Jacobians: a linear map applied to unit vectors, a chunk at a time.

Indices: ``k`` vectors, ``b`` samples of the batch, ``o`` outputs, ``i`` inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jacli.linear_maps import LinearMap, Slab


def rows(linear_map: LinearMap, *, chunk_size: int) -> Iterator[Slab]:
    """``chunk_size`` rows of every sample at a time: ``e_o @ J``.

    >>> from jacli.linear_maps import DenseMap
    >>> J = DenseMap(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))
    >>> [slab.values.tolist() for slab in rows(J, chunk_size=1)]
    [[[[1.0, 2.0, 3.0]]], [[[4.0, 5.0, 6.0]]]]

    Args:
        linear_map: The map; only its ``vjp`` is used.
        chunk_size: Most cotangents at once.
    """
    for units, chosen in _units(linear_map, linear_map.n_out, chunk_size):
        yield Slab(chosen, range(linear_map.n_in), linear_map.vjp(units).transpose(0, 1))  # kbi -> bki


def columns(linear_map: LinearMap, *, chunk_size: int) -> Iterator[Slab]:
    """``chunk_size`` columns of every sample at a time: ``J e_i``.

    >>> from jacli.linear_maps import DenseMap
    >>> J = DenseMap(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))
    >>> [slab.values.tolist() for slab in columns(J, chunk_size=2)]
    [[[[1.0, 2.0], [4.0, 5.0]]], [[[3.0], [6.0]]]]

    Args:
        linear_map: The map; only its ``jvp`` is used.
        chunk_size: Most tangents at once.
    """
    for units, chosen in _units(linear_map, linear_map.n_in, chunk_size):
        yield Slab(range(linear_map.n_out), chosen, linear_map.jvp(units).permute(1, 2, 0))  # kbo -> bok


def _units(linear_map: LinearMap, n: int, chunk_size: int) -> Iterator[tuple[Tensor, range]]:
    """The unit vectors of n numbers, the same for every sample: ``(k, b, n)`` and which."""
    for start in range(0, n, chunk_size):
        chosen = range(start, min(start + chunk_size, n))
        units = torch.zeros(
            len(chosen), linear_map.batch, n, dtype=linear_map.dtype, device=linear_map.device
        )
        units.diagonal(offset=start, dim1=0, dim2=2).fill_(1)
        yield units, chosen
