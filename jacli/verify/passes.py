"""Plain reverse passes at a batch, which everything that was computed is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_maps import Linearization, LinearMap


@dataclass(frozen=True)
class PlainPasses:
    """The Jacobians of a batch by plain reverse passes, and the outputs of their forward pass.

    Attributes:
        map: The Jacobians.
        of: The network at the batch, perhaps at several copies of it, one after another.
    """

    map: LinearMap
    of: Linearization

    @classmethod
    def at(cls, linearization: Linearization) -> PlainPasses:
        """Those of the network at a batch."""
        return cls(linearization.tape(), linearization)

    @property
    def outputs(self) -> Tensor:
        """``(batch, *output)``."""
        return self.of.outputs[: self.map.batch]

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the passes."""
        return self.map.dtype

    def pull(self, cotangents: Tensor) -> Tensor:
        """One pass: ``(batch, n_out) -> (batch, n_in)``."""
        return self.map.vjp(cotangents[None])[0]
