"""``vmap``: one linearisation, cotangents in batches.

As ``torch.func.jacrev(chunk_size=...)``, a batch of samples at once.

ceil(n_out / chunk_size) passes; memory: the activations of one batch, plus those of the pullback
times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jacli.linear_map import Block, Linearization
from jacli.methods.unit_vectors import rows


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` rows of every sample at a time."""
    return rows(linearization, linearization.vjp, chunk_size=chunk_size)


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Batched pullbacks."""
    return math.ceil(n_out / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """The model itself sees its own batch size: nothing to refuse."""
    return None
