"""``tangent``: the network's tangent map as a program of its own, tangents in batches.

As ``adjoint``, in the other direction: for few inputs and many outputs.  Unlike forward mode it does not run
the network anew in every pass.

ceil(n_in / chunk_size) passes; memory: the masks and multipliers of one batch, plus two or three layers'
tangents times chunk_size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jacli.linear_map import Block, Linearization
from jacli.methods.unit_vectors import columns


def blocks(linearization: Linearization, *, chunk_size: int) -> Iterator[Block]:
    """``chunk_size`` columns of every sample at a time."""
    return columns(linearization, linearization.tangent, chunk_size=chunk_size)


def passes(*, n_in: int, n_out: int, chunk_size: int) -> int:
    """Tangent passes."""
    return math.ceil(n_in / chunk_size)


def refusal(*, fixed_batch: int | None) -> str | None:
    """A graph is taken at two batch sizes."""
    if fixed_batch is not None:
        return f"the network is traced at two batch sizes, and the model accepts {fixed_batch} only"
    return None
