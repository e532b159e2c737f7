"""``loop``: one reverse pass an output, the whole batch at once.

Samples are independent, so the cotangent ``e_i`` in every sample pulls back to row i of every
sample's Jacobian.  n_out passes; memory: the activations of one batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from jacli.linear_map import Block, Linearization


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """One row of every sample at a time; ``chunk_size`` is 1 by nature and not used."""
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    cotangents = torch.zeros(batch, n_out, dtype=linearization.dtype, device=linearization.device)
    for i in range(n_out):
        cotangents[:, i] = 1
        rows = linearization.pull(cotangents)
        cotangents[:, i] = 0
        yield Block(range(i, i + 1), range(n_in), rows[:, None, :])


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """One an output."""
    return n_out


def refusal(*, fixed_batch: int | None) -> str | None:
    """Serves every model that has a derivative."""
    return None
