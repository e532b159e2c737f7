"""The zoo of toy models: what makes a network hard, once each, in sizes that a test picks.

`tests.cases` lists networks that every method has to serve; here are those that a run refuses, rounds or has
to be careful with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FixedBatch(nn.Module):
    """Runs on batches of four samples alone, as a program traced with a `view` does."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in = n_in
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(x.view(4, self.n_in)))


class Stateful(nn.Module):
    """Remembers the call before in a buffer: a second call gives another answer."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.register_buffer("state", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x.flatten(1))) + self.state
        self.state = 0.5 * y[:1, :1].mean().reshape(1)
        return y


class Mixing(nn.Module):
    """Each sample's output depends on the other samples of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)).flatten(1)


class Constants(nn.Module):
    """Once traced, its constants are float32 for good."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.n_in, self.n_out = n_in, n_out

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x.flatten(1)[:, : self.n_in] @ torch.ones(self.n_in, self.n_out))


class Confident(nn.Module):
    """The softmax of large numbers: its Jacobian is far below the numbers that its passes subtract.

    With ``mixed``, a linear layer follows that mixes the probabilities.
    """

    def __init__(self, n_in: int, *, scale: float, mixed: bool = False) -> None:
        super().__init__()
        self.first, self.scale = nn.Linear(n_in, 20), scale
        self.top = nn.Linear(20, 20, bias=False) if mixed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.softmax(self.scale * self.first(x), 1))
