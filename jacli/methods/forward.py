"""``forward``: forward mode, tangents in batches.

As ``torch.func.jacfwd`` in chunks, a batch of samples at once.

ceil(n_in / chunk_size) passes, whatever the number of outputs: for few inputs and many outputs.
Memory: no activations are kept; the tangents of one layer times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jacli.linear_map import Block, Linearization
from jacli.methods.unit_vectors import columns


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` columns of every sample at a time."""
    return columns(linearization, linearization.jvp, chunk_size=chunk_size)


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Batched tangent passes, each with its own forward pass."""
    return math.ceil(n_in / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """The model itself sees its own batch size: nothing to refuse."""
    return None
