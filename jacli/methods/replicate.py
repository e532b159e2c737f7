"""``replicate``: the input repeated once an output, and a single backward call; or some outputs at a time.

Copy i of a sample gets the cotangent ``e_i``; its input gradient is row i.  One call, but the
activations of ``batch * n_out`` samples are in memory at once; with ``chunk_size`` those of
``batch * chunk_size``, and the forward pass is shared by the chunks.  No batching rule is involved,
and a backward pass over 8 copies of one sample is often faster than 8 over one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from jacli.linear_map import Block, Linearization


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` rows of every sample at a time."""
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    chunk_size = min(chunk_size, n_out)
    copies = torch.arange(batch, device=linearization.device).repeat(chunk_size)
    repeated = linearization.at(copies)
    for start in range(0, n_out, chunk_size):
        count = min(chunk_size, n_out - start)
        cotangents = torch.zeros(
            chunk_size, batch, n_out, dtype=linearization.dtype, device=linearization.device
        )
        # The copies left over in the last chunk have no cotangent.
        cotangents[torch.arange(count), :, torch.arange(start, start + count)] = 1
        rows = repeated.pull(cotangents.reshape(chunk_size * batch, n_out))
        yield Block(
            range(start, start + count),
            range(n_in),
            rows.reshape(chunk_size, batch, n_in)[:count].transpose(0, 1),
        )


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Calls, each of the cost of ``chunk_size`` passes."""
    return math.ceil(n_out / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """Needs batches of other sizes than the model may accept."""
    if fixed_batch is not None:
        return f"it repeats the batch, and the model runs in batches of {fixed_batch} only"
    return None
