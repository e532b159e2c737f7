"""``replicate``: the input repeated once an output, and a single backward call.

Copy i of a sample gets the cotangent ``e_i``; its input gradient is row i.  One call, but the
activations of ``batch * n_out`` samples are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from jacli.linear_map import Block, Linearization


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """All rows in one block; there is one pass only, so ``chunk_size`` is not used."""
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    identity = torch.eye(n_out, dtype=linearization.dtype, device=linearization.device)
    copies = torch.arange(batch, device=linearization.device).repeat(n_out)
    rows = linearization.at(copies).pull(identity.repeat_interleave(batch, dim=0))
    yield Block(range(n_out), range(n_in), rows.reshape(n_out, batch, n_in).transpose(0, 1))


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """One call (of the cost of n_out passes)."""
    return 1


def refusal(*, fixed_batch: int | None) -> str | None:
    """Needs batches of other sizes than the model may accept."""
    if fixed_batch is not None:
        return f"it repeats the batch, and the model accepts batches of {fixed_batch} only"
    return None
