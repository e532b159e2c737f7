"""Plain passes that round as those over several copies of a block do."""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.network import Linearized
from jacli.plan import Plan


def copies_in(plan: Plan) -> int:
    """How many copies of a sample were in the batches that a plan ran."""
    if plan.method == "replicate":
        return plan.chunk_size
    links = plan.factored.links if plan.factored else ()
    return max((link.reverse_chunk for link in links if link.reverse_method == "replicate"), default=1)


class Repeated:
    """Plain passes over copies of a block, of which the first counts: it rounds as `replicate` does."""

    def __init__(self, block: Linearized, copies: int) -> None:
        self.batch, self.n_out, self.n_in = block.batch, block.n_out, block.n_in
        self.dtype, self.device = block.dtype, block.device
        self._repeated = block.at(torch.arange(block.batch, device=block.device).repeat(copies))

    @property
    def outputs(self) -> Tensor:
        """Of the first copy."""
        return self._repeated.outputs[: self.batch]

    def pull(self, cotangents: Tensor) -> Tensor:
        """``(batch, n_out) -> (batch, n_in)``."""
        every = cotangents.new_zeros(self._repeated.batch, self.n_out)
        every[: self.batch] = cotangents
        return self._repeated.pull(every)[: self.batch]
