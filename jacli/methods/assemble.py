"""Blocks put together into dense matrices."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from jacli.errors import means_out_of_memory
from jacli.linear_map import Block, Linearization


def assemble(blocks: Iterable[Block], linearization: Linearization, out: Tensor | None = None) -> Tensor:
    """The dense matrices of a batch, ``(batch, n_out, n_in)``, each block written into its place.

    Nothing is stacked: the peak is the result plus one block, and a block that is everything is the
    result.  In memory the rows of a sample are contiguous, or its columns where blocks are columns.

    Args:
        blocks: Of a method.
        linearization: What they are of.
        out: Where to write, ``(<= batch, n_out, n_in)``: the first samples, without those that pad a batch.

    Raises:
        MemoryError: The result cannot be allocated.
    """
    batch, n_out, n_in = linearization.batch, linearization.n_out, linearization.n_in
    dense = out
    for block in blocks:
        rows, columns = block.outputs, block.inputs
        if out is None and (len(rows), len(columns)) == (n_out, n_in):
            return block.values
        if dense is None:
            dense = _empty(block.values, batch, n_out, n_in, by_columns=len(rows) == n_out)
        dense[:, rows.start : rows.stop, columns.start : columns.stop] = block.values[: len(dense)]
    assert dense is not None  # a method yields every entry
    return dense


def _empty(like: Tensor, batch: int, n_out: int, n_in: int, *, by_columns: bool) -> Tensor:
    try:
        return like.new_empty(batch, n_in, n_out).mT if by_columns else like.new_empty(batch, n_out, n_in)
    except RuntimeError as error:  # torch's CPU allocator raises no MemoryError
        if means_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
