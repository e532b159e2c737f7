"""A frozen module as a probed network; rows padded to the batch size it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from jacli.linear_map import Extra
from jacli.network import TensorNetwork
from jacli.verify import BATCH_SIZES, Probed, probe


def probed_network(
    module: nn.Module,
    x: Tensor,
    extra: Extra,
    *,
    arguments: Mapping[str, object] | None = None,
    select: str | None = None,
    of: str = "logits",
    batch_hints: Sequence[int] = BATCH_SIZES,
) -> tuple[TensorNetwork, Probed]:
    """Wrap a frozen module and probe it on the first rows of the inputs."""
    network = TensorNetwork.of_module(module, arguments=arguments or {}, select=select, of=of)
    probed = probe(network, x, extra, batch_hints=batch_hints)
    return replace(network, fresh=probed.stateful, lone=probed.lone), probed


def padded(rows: Tensor, size: int) -> Tensor:
    """``rows`` with its last row repeated up to ``size`` rows; as they are where they suffice."""
    if len(rows) >= size:
        return rows
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])
