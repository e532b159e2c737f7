"""Rules of products: with constant matrices, and of two values that may both move."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.device.matrix_product import Matrix
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Broadcast, Key, LocalMap, Multiple, Scale
from jacli.linear_program.prepared import Passes, Weighted


class Product(Weighted):
    """The last axis times a constant matrix, ``y = x W'``: pulled, ``g W``.

    Args:
        weight: W, ``(n_out, n_in)``.
        key: What it was made from, if from constants alone.
        passes: How vectors are carried.
    """

    def __init__(self, weight: Tensor, passes: Passes, key: Key | None) -> None:
        super().__init__(passes, key)
        self.weight = weight

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        matrix: Matrix = self.prepared("pull", lambda: Matrix(self.weight.to(self.passes.dtype)))
        return matrix.rows_times(g)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        matrix: Matrix = self.prepared("push", lambda: Matrix(self.weight.t().to(self.passes.dtype)))
        return matrix.rows_times(t)

    def scaled_in(self, scale: Scale) -> Product | None:
        """This product of the scaled operand."""
        if scale.axis != -1:
            return None
        return Product(self.weight * scale.factors, self.passes, self.folded_key("in", scale))

    def scaled_out(self, scale: Scale) -> Product | None:
        """The scaled result of this product."""
        if scale.axis != -1:
            return None
        return Product(self.weight * scale.factors[:, None], self.passes, self.folded_key("out", scale))

    def of_channels_last(self, shape: Sequence[int]) -> Product:
        """The same for an operand ``(c, h, w)`` that is flattened in the order ``(h, w, c)``."""
        weight = self.weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
        return Product(weight, self.passes, self.key and (*self.key, "channels last", *shape))


@dataclass(frozen=True)
class LeftOperand:
    """``y = x B`` with another B ``(..., n, p)`` at every sample."""

    right: Tensor

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return _times(g, self.right.mT)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return _times(t, self.right)


@dataclass(frozen=True)
class RightOperand:
    """``y = A x`` with another A ``(..., m, n)`` at every sample."""

    left: Tensor

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return _times(g.mT, self.left).mT

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return _times(t.mT, self.left.mT).mT


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """``(k, ..., m, n) @ (..., n, p)``, the k vectors as more rows, or the matrices repeated.

    Whichever copies less: a product in batches wants its operands side by side.  Either way the result lies
    in memory as ``(..., k, m, p)``, so that a product that follows has nothing to copy.
    """
    k, *batch, m, n = vectors.shape
    p = matrices.shape[-1]
    side_by_side = vectors.movedim(0, -3)
    if side_by_side.is_contiguous() or m <= p:
        rows = side_by_side.reshape(math.prod(batch), k * m, n)
        product = torch.bmm(rows, matrices.reshape(-1, n, p))
    else:
        repeated = matrices.unsqueeze(-3).expand(*batch, k, n, p).reshape(-1, n, p)
        product = torch.bmm(side_by_side.flatten(0, -3), repeated)
    return product.view(*batch, k, m, p).movedim(-3, 0)


def linear(call: Call) -> None:
    """``linear(input, weight, bias)``: the bias goes."""
    call.only("input")
    if call["weight"].dim() != 2:  # a vector: one number out, without an axis
        raise NoRule
    call.edge("input", Product(call["weight"], call.passes, call.key("weight")))


def addmm(call: Call) -> None:
    """``beta self + alpha mat1 @ mat2``."""
    alpha, beta = call["alpha"], call["beta"]
    out = call.out
    if call.is_live("self"):
        shape = call["self"].shape
        call.edge("self", Broadcast(shape, out.shape), *_multiple(beta))
    _operands(call, "mat1", "mat2", *_multiple(alpha))


def mm(call: Call) -> None:
    """``self @ mat2``, two axes each."""
    _operands(call, "self", "mat2")


def bmm(call: Call) -> None:
    """``self @ mat2``, a batch of matrices each."""
    call.edge("self", LeftOperand(call["mat2"].to(call.passes.dtype)))
    call.edge("mat2", RightOperand(call["self"].to(call.passes.dtype)))


def matmul(call: Call) -> None:
    """``self @ other`` as numpy's, batches broadcast."""
    a, b = call["self"], call["other"]
    if a.dim() < 2 or b.dim() < 2:
        raise NoRule
    if b.dim() == 2 and not call.is_live("other"):
        call.edge("self", Product(b.t(), call.passes, call.key("other")))
        return
    batch = call.out.shape[:-2]
    for name, value, other, kind in (("self", a, b, LeftOperand), ("other", b, a, RightOperand)):
        spread = torch.Size((*batch, *value.shape[-2:]))
        first = [] if spread == value.shape else [Broadcast(value.shape, spread)]
        against = other.expand(*batch, *other.shape[-2:]).to(call.passes.dtype)
        call.edge(name, *first, kind(against))


def _operands(call: Call, left: str, right: str, *then: LocalMap) -> None:
    """The two operands of a product of matrices ``(m, n) @ (n, p)``, rows of the left one being samples."""
    a, b = call[left], call[right]
    if not call.is_live(right):
        call.edge(left, Product(b.t(), call.passes, call.key(right)), *then)
        return
    call.edge(left, LeftOperand(b.to(call.passes.dtype)), *then)
    call.edge(right, RightOperand(a.to(call.passes.dtype)), *then)


def _multiple(factor: float) -> list[LocalMap]:
    return [] if factor == 1 else [Multiple(factor)]
