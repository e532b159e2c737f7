"""Every block of a run: does a sample give on its own what it gave among the others?

The probe sees two samples, once.  This sees what comes later: mixing in larger batches only, a
branch on the whole batch, state that shows after a while.
"""

from __future__ import annotations

import torch
from torch import nn

from jacli.errors import ModelError, telling_line, translating
from jacli.linear_map import Linearization
from jacli.verify.probe import mixing_error, moved

TOLERANCE = 1e-2
"""Relative: outputs are continuous, and other batch sizes only round otherwise."""


def check_alone(linearization: Linearization, module: nn.Module, *, position: int, fixed_batch: bool) -> None:
    """Run one sample of a block alone, or the block rolled by one where the batch size is fixed.

    Args:
        linearization: The network at the block.
        module: Named in the error.
        position: The sample.
        fixed_batch: Whether the model accepts no other batch size.

    Raises:
        ModelError: The sample's output differs by more than `TOLERANCE`, or the model fails on the block.
        MemoryError: An allocation failed.

    Cost: one forward pass of one sample (of the block, if fixed).
    """
    size = linearization.batch
    if size == 1:
        return  # it is on its own
    everyone = torch.arange(size, device=linearization.device)
    index, where = (everyone.roll(1), (position + 1) % size) if fixed_batch else (everyone[position, None], 0)

    with translating(lambda error: block_failure(size, error)):
        among = linearization.outputs[position]
        again = linearization.at(index).outputs[where]
    if moved(among, again, eps=TOLERANCE):
        how = "in another order" if fixed_batch else "on its own"
        raise mixing_error(module, f"sample {position} of a block of {size} gives another output {how}")


def block_failure(size: int, error: Exception) -> ModelError:
    """What to say where the model raises an error on a block of so many samples."""
    return ModelError(
        f"The model fails on a block of {size} samples.",
        why=f"The model says: {telling_line(error)}",
        todo="Give the batch size that it accepts: --batch-size N.",
    )
