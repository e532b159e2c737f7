"""``vmap``: one linearisation, cotangents in batches.

As ``torch.func.jacrev(chunk_size=...)``, a batch of samples at once.

ceil(n_out / chunk_size) passes; memory: the activations of one batch, plus those of the pullback
times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from jacli.linear_map import Block, Linearization


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` rows of every sample at a time."""
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    for start in range(0, n_out, chunk_size):
        rows = range(start, min(start + chunk_size, n_out))
        cotangents = torch.zeros(
            len(rows), batch, n_out, dtype=linearization.dtype, device=linearization.device
        )
        cotangents[torch.arange(len(rows)), :, torch.arange(rows.start, rows.stop)] = 1
        yield Block(rows, range(n_in), linearization.vjp(cotangents).transpose(0, 1))


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Batched pullbacks."""
    return math.ceil(n_out / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """The model itself sees its own batch size: nothing to refuse."""
    return None
