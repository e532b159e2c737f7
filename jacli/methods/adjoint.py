"""``adjoint``: the network's adjoint as a program of its own, cotangents in batches.

The traced network is linearised once a block, operator by operator (`jacli.linear_program`); then every
pass is linear work alone, without autograd, in the precision asked for.

ceil(n_out / chunk_size) passes; memory: the masks and multipliers of one batch, plus two or three layers'
cotangents times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jacli.linear_map import Block, Linearization
from jacli.methods.unit_vectors import rows


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` rows of every sample at a time."""
    return rows(linearization, linearization.adjoint, chunk_size=chunk_size)


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Adjoint passes."""
    return math.ceil(n_out / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """A graph is taken at two batch sizes."""
    if fixed_batch is not None:
        return f"the network is traced at two batch sizes, and the model accepts {fixed_batch} only"
    return None
