"""Rules of sums and means, and of softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Broadcast, LocalMap, Multiple, Reshaped, Transposed
from jacli.linear_program.rule import linear


@linear("sum")
def sum_(call: Call) -> Sequence[LocalMap]:
    """``y = Σ x;  dy = Σ dx,  x̄ = ȳ`` repeated along the axes summed over.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.sum(1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [1.0, 1.0]
    """
    return _summed(call, mean=False)


@linear("mean")
def mean(call: Call) -> Sequence[LocalMap]:
    """``y = Σ x / m;  dy = Σ dx / m,  x̄ = ȳ / m`` repeated along the axes of m numbers in all.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.mean(1), torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [0.5, 0.5]
    """
    return _summed(call, mean=True)


def _summed(call: Call, *, mean: bool) -> list[LocalMap]:
    x, axes = call["self"], call["dim"] if call.has("dim") else None
    if call.has("dtype") and call["dtype"] not in (None, x.dtype):
        raise NoRule
    listed = range(x.dim()) if not axes and axes != 0 else [axes] if isinstance(axes, int) else axes
    summed = {axis % x.dim() for axis in listed}
    kept = torch.Size(1 if i in summed else n for i, n in enumerate(x.shape))
    maps: list[LocalMap] = [Transposed(Broadcast(kept, x.shape))]
    if mean:
        maps.append(Multiple(kept.numel() / x.shape.numel()))
    if kept != call.out.shape:
        maps.append(Reshaped(kept, call.out.shape))
    return maps


@dataclass(frozen=True)
class Softmax:
    """``p = softmax(x)``: J = diag(p) - p pᵀ, symmetric."""

    p: Tensor
    axis: int

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        weighted = g.mul_(self.p) if may_overwrite else g * self.p
        return weighted.addcmul_(self.p.expand_as(weighted), weighted.sum(self.axis, keepdim=True), value=-1)

    jvp = vjp


@dataclass(frozen=True)
class LogSoftmax:
    """``y = log p``, p = softmax(x): J = I - 1 pᵀ."""

    p: Tensor
    axis: int

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return g - self.p * g.sum(self.axis, keepdim=True)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return t - (self.p * t).sum(self.axis, keepdim=True)


@linear("softmax", "_softmax", "_safe_softmax")
def softmax(call: Call) -> Sequence[LocalMap]:
    """``p = eˣ / Σ eˣ;  dp = p * (dx - Σ p * dx)``.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.softmax(1), torch.zeros(1, 2), method="adjoint")[0].tolist()
    [[0.25, -0.25], [-0.25, 0.25]]
    """
    return [Softmax(*_probabilities(call, call.out))]


@linear("log_softmax", "_log_softmax")
def log_softmax(call: Call) -> Sequence[LocalMap]:
    """``y = x - log Σ eˣ;  dy = dx - Σ p * dx,  x̄ = ȳ - p Σ ȳ``.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: x.log_softmax(1), torch.zeros(1, 2), method="adjoint")[0].tolist()
    [[0.5, -0.5], [-0.5, 0.5]]
    """
    return [LogSoftmax(*_probabilities(call, call.out.exp()))]


def _probabilities(call: Call, p: Tensor) -> tuple[Tensor, int]:
    """P in the passes' dtype, and the axis along which it adds up to one, counted from the end."""
    if call["self"].dtype != call.out.dtype:
        raise NoRule
    return p.to(call.settings.dtype), call["dim"] % call.out.dim() - call.out.dim()
