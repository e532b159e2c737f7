"""Cases of the contract: small modules of one operator, or of a few that are fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, C, H, W = 2, 3, 5, 4


@dataclass(frozen=True)
class Operator:
    """A module and the input at which it is linearised.

    Attributes:
        make: Builds the module; called after seeding.
        shape: Of a sample; all axes different, and none of the batch's size.
        positive: Whether the input is positive (logarithms, roots).
        outputs: Largest error of the outputs against the module's own; 0 is bit for bit.
        forward: Whether torch has a forward mode for the operators that autograd differentiates.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (C, H, W)
    positive: bool = False
    outputs: float = 0.0
    forward: bool = True


class Of(nn.Module):
    """A function of a module and its input, with the layers and constants it names."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (C, H, W), **options: Any) -> Operator:
    """A case of a function of the input alone."""
    return Operator(lambda: Of(lambda _, x: function(x)), shape, **options)


def seeded(name: str) -> None:
    """Seed the random state in which a case of this name is built."""
    torch.manual_seed(sum(map(ord, name)))


def points(operator: Operator, batch: int) -> Tensor:
    """Input of a case in float64 that float32 holds exactly; different for each batch size."""
    generator = torch.Generator().manual_seed(batch)
    x = 1.3 * torch.randn(batch, *operator.shape, generator=generator)
    return (x.abs() + 0.2 if operator.positive else x).double()
