"""``forward``: forward mode, tangents in batches.

As ``torch.func.jacfwd`` in chunks, a batch of samples at once.

ceil(n_in / chunk_size) passes, whatever the number of outputs: for few inputs and many outputs.
Memory: no activations are kept; the tangents of one layer times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from jacli.linear_map import Block, Linearization


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` columns of every sample at a time."""
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    for start in range(0, n_in, chunk_size):
        columns = range(start, min(start + chunk_size, n_in))
        tangents = torch.zeros(
            len(columns), batch, n_in, dtype=linearization.dtype, device=linearization.device
        )
        tangents[torch.arange(len(columns)), :, torch.arange(columns.start, columns.stop)] = 1
        yield Block(range(n_out), columns, linearization.jvp(tangents).permute(1, 2, 0))


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Batched tangent passes, each with its own forward pass."""
    return math.ceil(n_in / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """The model itself sees its own batch size: nothing to refuse."""
    return None
