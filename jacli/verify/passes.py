"""What the checks use of a linearisation."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class ReversePasses(Protocol):
    """All that the checks use of a `jacli.linear_map.Linearization`."""

    @property
    def batch(self) -> int: ...

    @property
    def n_out(self) -> int: ...

    @property
    def n_in(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def outputs(self) -> Tensor: ...

    def pull(self, cotangents: Tensor) -> Tensor:
        """``(batch, n_out) -> (batch, n_in)``."""
        ...


class Reference(ReversePasses, Protocol):
    """Reverse passes that can be taken again nearby."""

    def at(self, index: Tensor, *, noise: float = 0.0, seed: int = 0) -> ReversePasses:
        """As `jacli.linear_map.Linearization.at`."""
        ...
