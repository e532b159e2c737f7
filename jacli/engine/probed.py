"""Wrap a frozen module as a network and probe it; pad rows to the batch size that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from jacli.linear_maps import Extra
from jacli.network import TensorNetwork, input_parameter, parameters_of
from jacli.verify import BATCH_SIZES, Mistake, Probed, probe, repeated_rows


def probed_network(
    module: nn.Module,
    x: Tensor,
    extra: Extra,
    *,
    arguments: Mapping[str, object] | None = None,
    input_arg: str | None = None,
    signature: Callable[..., object] | None = None,
    select: str | None = None,
    of: str = "logits",
    batch_hints: Sequence[int] = BATCH_SIZES,
    alone: bool = False,
    mistake: Mistake | None = None,
) -> tuple[TensorNetwork, Probed]:
    """Wrap a frozen module and probe it on the first rows of the inputs.

    >>> layer = nn.Linear(3, 2).eval().requires_grad_(False)
    >>> network, found = probed_network(layer, torch.zeros(2, 3), {}, of="probs")
    >>> found.output_shape, network(torch.zeros(1, 3), {}).sum().item()
    ((2,), 1.0)

    Args:
        module: The module.
        x: The first rows.
        extra: Further arguments of those rows.
        arguments: Further arguments of ``forward``, the same for every sample.
        input_arg: The argument that takes the inputs; found from the signature if None.
        signature: A callable with the signature of ``forward``; the module itself if None.
        select: See `TensorNetwork`.
        of: See `TensorNetwork`.
        batch_hints: See `probe`.
        alone: See `probe`.
        mistake: See `probe`.
    """
    names = (*(arguments or {}), *extra)
    network = TensorNetwork.of_module(
        module,
        arguments=arguments or {},
        input_arg=input_parameter(signature or module, names, input_arg),
        select=select,
        of=of,
    )
    given = {name.partition(".")[0] for name in names}
    others = [one.name for one in parameters_of(signature or module) if one.name not in given]
    inputs = network.input_arg or next(iter(others), None)
    probed = probe(
        network,
        x,
        extra,
        batch_hints=batch_hints,
        names=names,
        left_out=[name for name in others if name != inputs],
        alone=alone,
        mistake=mistake,
    )
    network = replace(
        network,
        copy_each_call=probed.stateful,
        saves_copies=probed.overwrites,
        squeezes_batch_of_one=probed.squeezes_batch_of_one,
    )
    return replace(network, anchor=_anchor(network, x, extra, probed.fixed_batch or 2)), probed


def _anchor(network: TensorNetwork, x: Tensor, extra: Extra, size: int) -> tuple[Tensor, Extra, Tensor]:
    """Points, their further arguments, and the outputs there of a copy of the network that is new."""
    points, rest = repeated_rows(x, extra, size)
    with torch.no_grad():
        return points, rest, network.copied()(points, rest)


def padded(rows: Tensor, size: int) -> Tensor:
    """``rows``, the last one repeated to make ``size`` rows in all if they are fewer.

    >>> padded(torch.tensor([[1.0], [2.0]]), 4).flatten().tolist()
    [1.0, 2.0, 2.0, 2.0]
    """
    if len(rows) >= size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
