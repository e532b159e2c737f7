"""Rules of sums, means and what normalises by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Broadcast, LocalMap, Multiple, Reshaped, Transposed


def sum_(call: Call) -> None:
    """A sum over some axes or all."""
    _reduced(call, mean=False)


def mean(call: Call) -> None:
    """A mean over some axes or all."""
    _reduced(call, mean=True)


def _reduced(call: Call, *, mean: bool) -> None:
    axes = call["dim"] if call.has("dim") else None
    dim = call["self"].dim()
    if call.has("dtype") and call["dtype"] not in (None, call["self"].dtype):
        raise NoRule
    listed = list(range(dim)) if not axes and axes != 0 else [axes] if isinstance(axes, int) else list(axes)
    _mean_over(call, [axis % dim for axis in listed], mean=mean)


def _mean_over(call: Call, axes: list[int], *, mean: bool) -> None:
    shape = call["self"].shape
    kept = torch.Size(1 if i in axes else n for i, n in enumerate(shape))
    maps: list[LocalMap] = [Transposed(Broadcast(kept, shape))]
    if mean:
        maps.append(Multiple(kept.numel() / shape.numel()))
    if kept != call.out.shape:
        maps.append(Reshaped(kept, call.out.shape))
    call.edge("self", *maps)


@dataclass(frozen=True)
class Softmax:
    """``p = softmax(x)``: J = diag(p) - p p', symmetric."""

    p: Tensor
    axis: int

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        weighted = g.mul_(self.p) if mine else g * self.p
        return weighted.addcmul_(self.p.expand_as(weighted), weighted.sum(self.axis, keepdim=True), value=-1)

    push = pull


@dataclass(frozen=True)
class LogSoftmax:
    """``log p``, p = softmax(x): J = I - 1 p'."""

    p: Tensor
    axis: int

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return g - self.p * g.sum(self.axis, keepdim=True)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return t - (self.p * t).sum(self.axis, keepdim=True)


def softmax(call: Call) -> None:
    """Along one axis."""
    _normalised(call, Softmax, call.out)


def log_softmax(call: Call) -> None:
    """Along one axis."""
    _normalised(call, LogSoftmax, call.out.exp())


def _normalised(call: Call, kind: type[Softmax] | type[LogSoftmax], p: Tensor) -> None:
    if call["self"].dtype != call.out.dtype:
        raise NoRule
    call.edge("self", kind(p.to(call.passes.dtype), call["dim"] % call.out.dim() - call.out.dim()))
