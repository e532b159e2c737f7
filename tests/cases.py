"""A registry of small models, all axes different, so that no transposition passes.

A case is a function that returns a module and an input of ``(batch, *input)``; b=2, c=3, h=5, w=4,
n=7 wherever the model allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH, C, H, W, N = 2, 3, 5, 4, 7


@dataclass(frozen=True)
class Case:
    """A model and points to linearise it at.

    Attributes:
        make: Builds the module.
        shape: Of a sample.
        batch: Samples.
        select: Which output.
        exportable: Whether torch.export and tracing keep what it does.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...] = (C, H, W)
    batch: int = BATCH
    select: str | None = None
    exportable: bool = True


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(C, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.top = nn.Linear(6, N)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        y = y + torch.relu(self.second(y))
        return self.top(y.mean((2, 3)))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, 6, 3, stride=2, padding=1)
        self.top = nn.Linear(6 * 3 * 2, N)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y += 0.5
        y = torch.relu_(y)
        z = y.clone()
        z[:, 0] = 0
        z.mul_(1.5)
        return self.top(z.flatten(1))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.top = nn.Linear(4, N)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.attention(x, x, x)[0].mean(1))


class Flash(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)
        self.top = nn.Linear(4, N)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        return self.top(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, 2, batch_first=True)
        self.top = nn.Linear(6, N)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.lstm(x)[0][:, -1])


class DeadGradient(nn.Module):
    """One output of seven never moves: its row is zero, the others' are not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, N)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.cat([torch.relu(y[:, :1] - 1000.0), torch.tanh(y[:, 1:])], 1)


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, N)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x)
        return y.sum(1), torch.sin(y)


class Stateful(nn.Module):
    """Keeps what it saw: a second call gives another answer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.top = nn.Linear(6, N)
        self.state = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.linear(x)) + self.state
        self.state = 0.5 * y
        return self.top(y)


class StatefulBuffer(Stateful):
    """In a buffer: TorchScript can keep it."""

    def __init__(self) -> None:
        super().__init__()
        del self.state
        self.register_buffer("state", torch.zeros(1))


class Scalar(nn.Module):
    """No class axis: (batch,) out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.linear(x)).squeeze(1)


class Squeezed(nn.Module):
    """``squeeze()`` drops the batch axis of a lone sample too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.linear(x)).squeeze()


def _conv(*top: nn.Module, channels: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C, channels, 3, padding=1), *top)


def _batch_norm() -> nn.Module:
    model = _conv(nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * H * W, N))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def _prelu() -> nn.Module:
    model = _conv(nn.PReLU(6), nn.Flatten(), nn.Linear(6 * H * W, N), nn.PReLU(N))
    with torch.no_grad():
        model[1].weight.uniform_(0.1, 0.9)
        model[4].weight.uniform_(0.1, 0.9)
    return model


CASES: dict[str, Case] = {
    "linear": Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, N))),
    "conv_relu": Case(lambda: _conv(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 4, N))),
    "residual": Case(Residual),
    "in_place": Case(InPlace),
    "batch_norm": Case(_batch_norm),
    "prelu": Case(_prelu),
    "prelu_batch_is_n_out": Case(_prelu, batch=N),
    "softmax": Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(C * H * W, N), nn.Softmax(-1))),
    "image_to_image": Case(lambda: _conv(nn.GELU(), nn.Conv2d(6, 2, 3, stride=2))),
    "sequence": Case(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.SiLU(), nn.Linear(6, 3)), (5, 4)
    ),
    "attention": Case(Attention, (5, 4)),
    "flash_attention": Case(Flash, (5, 4)),
    "lstm": Case(Recurrent, (5, 4)),
    "one_output": Case(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)), (5,)),
    "no_class_axis": Case(Scalar, (5,)),
    "squeezed": Case(Squeezed, (5,), exportable=False),
    "dead_gradient": Case(DeadGradient, (5,)),
    "narrow_middle": Case(lambda: nn.Sequential(nn.Linear(9, 3), nn.Tanh(), nn.Linear(3, N)), (9,)),
    "few_inputs": Case(lambda: nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 11)), (3,)),
    "tuple_output": Case(TwoOutputs, (5,), select="1"),
    "stateful": Case(Stateful, (5,), exportable=False),
    "stateful_buffer": Case(StatefulBuffer, (5,), exportable=False),
}


def build(
    name: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[nn.Module, Tensor, Case]:
    """The case's module in eval mode and its points, seeded."""
    case = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    module = case.make().to(dtype).eval()
    if isinstance(getattr(module, "state", None), Tensor):
        module.state = module.state.to(device, dtype)
    x = torch.randn(case.batch, *case.shape, dtype=torch.float64)
    return module.to(device), x.to(device, dtype), case
