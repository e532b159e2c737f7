"""Other samples that the model accepts, to see whether a sample's output depends on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from jacli.errors import JacliError, means_out_of_memory
from jacli.linear_maps import Extra, Network


def with_others_changed(network: Network, x: Tensor, extra: Extra, kept: int | None) -> tuple[Tensor, Tensor]:
    """A batch in which all samples but one are replaced, and the network's outputs there.

    The replacements are shifted and have noise added.  A model may refuse such values: an embedding of bytes
    that are given as floats, a check of ranges.  Then values of the batch take their place: first all of them
    shuffled, then those at the same position in another sample (each column may have its own range).  If even
    these are refused, nothing is replaced.

    >>> from jacli.network import TensorNetwork
    >>> network = TensorNetwork.of_module(torch.nn.Identity())
    >>> changed, outputs = with_others_changed(network, torch.ones(3, 2), {}, kept=1)
    >>> (changed == 1).all(1).tolist()
    [False, True, False]

    Args:
        network: The network; it accepts the batch itself.
        x: The batch, ``(m, *input)``.
        extra: Further arguments of these samples.
        kept: Position of the sample that stays; None replaces them all.

    Raises:
        MemoryError: An allocation failed, on the host or on the device.
        Exception: What the model raises on the batch itself.

    Cost: one forward pass; up to four if the model refuses values.
    """
    for changed in _changes(x):
        if kept is not None:
            changed[kept] = x[kept]
        try:
            return changed, network(changed, extra)
        except JacliError:
            raise
        except Exception as error:  # a model's own code may raise anything
            if means_out_of_memory(error):
                raise
    return x, network(x, extra)


def _changes(x: Tensor) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
    spread = x.float().std(correction=0).nan_to_num(1.0).clamp(min=0.1).to(x.dtype)
    yield x.reshape(len(x), -1).roll(1, dims=1).reshape(x.shape) + spread * noise
    yield x.flatten()[torch.randperm(x.numel(), generator=generator).to(x.device)].reshape(x.shape)
    yield x.roll(1, dims=0)
