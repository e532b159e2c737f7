"""Plain passes whose forward pass rounds as a method's own did, so that kinks fall alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jacli.device.torch_switches import batched_pass
from jacli.network import Linearized

PLAIN_METHODS = ("loop", "replicate")
"""Their forward pass takes every kernel; the others' only those with batching rules."""


def as_run(block: Linearized, plan: Mapping[str, Any], *, recurrent: bool) -> Iterator[AsRun]:
    """Plain passes over a batch, once for each way in which a run's forward pass may have rounded.

    Args:
        block: The network at the batch.
        plan: How the run computed, as `Plan.to_dict` gives it.
        recurrent: Whether the network holds recurrent layers.
    """
    for batched, copies in ways(plan):
        yield AsRun(
            block, batched=batched, copies=copies, recurrent=recurrent and plan["method"] == "forward"
        )


def ways(plan: Mapping[str, Any]) -> list[tuple[bool, int]]:
    """Whether only kernels with batching rules serve, and how many copies of the batch; likeliest first."""
    links = (plan.get("factored") or {}).get("links", ())
    copies = [link["reverse_chunk"] for link in links if link["reverse_method"] == "replicate"]
    if plan["method"] == "replicate":
        copies = [plan["chunk_size"]]
    batched = [] if plan["method"] in PLAIN_METHODS else [(True, 1)]
    return list(dict.fromkeys([*((False, int(n)) for n in copies), *batched, (False, 1)]))


class AsRun:
    """Plain reverse passes whose forward pass rounds as the method's own did.

    ``replicate`` runs the model on ``copies`` copies of every sample, and row i comes from copy
    ``i % copies``: a cotangent u pulls back as the sum over the copies c of the parts of u at c,
    ``c + copies``, ...  Batched methods (``batched``) take the kernels that have batching rules.
    """

    def __init__(self, block: Linearized, *, batched: bool, copies: int, recurrent: bool) -> None:
        self.batch, self.n_out, self.n_in = block.batch, block.n_out, block.n_in
        self.dtype, self.device = block.dtype, block.device
        self._copies = min(copies, self.n_out)
        self._passes: Callable[[], AbstractContextManager[None]] = nullcontext
        if batched:
            self._passes = partial(batched_pass, recurrent=recurrent)
        repeated = torch.arange(self.batch, device=self.device).repeat(self._copies)
        plain = self._copies == 1 and not batched
        self._block = block if plain else block.at(repeated)

    @property
    def outputs(self) -> Tensor:
        """Of the first copy."""
        return self._block.outputs[: self.batch]

    def pull(self, cotangents: Tensor) -> Tensor:
        """``(batch, n_out) -> (batch, n_in)``."""
        copy_of = torch.arange(self.n_out, device=self.device) % self._copies
        mine = copy_of == torch.arange(self._copies, device=self.device)[:, None]  # (copies, n_out)
        spread = (cotangents * mine[:, None, :]).reshape(-1, self.n_out)
        with self._passes():
            gradients = self._block.pull(spread)
        return gradients.reshape(self._copies, self.batch, self.n_in).sum(0)

    def close(self) -> None:
        """Free the tape."""
        self._block.close()
