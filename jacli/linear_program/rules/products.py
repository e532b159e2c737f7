"""Rules of matrix products: with constant weights, and of two values that both depend on the input.

Axes: k vectors, i in, o out, m rows and p columns of a result; ``...`` are batch axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.device.matrix_product import Matrix
from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.local_map import Broadcast, LocalMap, Multiple, Scale, WeightedMap
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.rule import bilinear, linear, rule
from jacli.linear_program.weight_cache import Key


class Product(WeightedMap):
    """``y = x Wᵀ`` along the last axis, with constant weights:  ``dy = dx Wᵀ,  x̄ = ȳ W``.

    Args:
        weight: W, ``(o, i)``.
        settings: Of the passes.
        key: Names the constants that W was computed from; None if it changes with the batch.
    """

    def __init__(self, weight: Tensor, settings: PassSettings, key: Key | None) -> None:
        super().__init__(settings, key)
        self.weight = weight

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        matrix: Matrix = self.laid_out("vjp", lambda: Matrix(self.weight.to(self.settings.dtype)))
        return matrix.rows_times(g)  # k ... o, o i -> k ... i

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        matrix: Matrix = self.laid_out("jvp", lambda: Matrix(self.weight.t().to(self.settings.dtype)))
        return matrix.rows_times(t)  # k ... i, i o -> k ... o

    def scaled_in(self, scale: Scale) -> Product | None:
        """This product after a scale, as one product; None if the scale is along another axis."""
        if scale.axis != -1:
            return None
        return Product(self.weight * scale.factors, self.settings, self.folded_key("in", scale))

    def scaled_out(self, scale: Scale) -> Product | None:
        """This product before a scale, as one product; None if the scale is along another axis."""
        if scale.axis != -1:
            return None
        return Product(self.weight * scale.factors[:, None], self.settings, self.folded_key("out", scale))

    def channels_last(self, shape: Sequence[int]) -> Product:
        """The same for an operand ``(c, h, w)`` that is flattened in the order ``h w c``."""
        weight = self.weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)  # o (c h w) -> o (h w c)
        return Product(weight, self.settings, self.key and (*self.key, "channels last", *shape))


@dataclass(frozen=True)
class LeftOperand:
    """``dy = da b,  ā = ȳ bᵀ``, with a matrix b ``(..., i, o)`` per sample."""

    right: Tensor

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return _times(g, self.right.mT)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return _times(t, self.right)


@dataclass(frozen=True)
class RightOperand:
    """``dy = a db,  b̄ = aᵀ ȳ``, with a matrix a ``(..., o, i)`` per sample."""

    left: Tensor

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return _times(g.mT, self.left).mT

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return _times(t.mT, self.left.mT).mT


def _times(vectors: Tensor, matrices: Tensor) -> Tensor:
    """``k ... m i, ... i p -> k ... m p``, with the vectors as more rows or with the matrices repeated.

    A batched product needs contiguous operands; this picks the way that copies less.  Either way the result
    is stored in the order ``... k m p``, so that a product that follows copies nothing.
    """
    k, *batch, m, i = vectors.shape
    p = matrices.shape[-1]
    rows_of_vectors = vectors.movedim(0, -3)  # k ... m i -> ... k m i
    if rows_of_vectors.is_contiguous() or m <= p:
        rows = rows_of_vectors.reshape(math.prod(batch), k * m, i)
        product = torch.bmm(rows, matrices.reshape(-1, i, p))
    else:
        repeated = matrices.unsqueeze(-3).expand(*batch, k, i, p).reshape(-1, i, p)
        product = torch.bmm(rows_of_vectors.flatten(0, -3), repeated)
    return product.view(*batch, k, m, p).movedim(-3, 0)


@linear("linear")
def weights_times_input(call: Call) -> Sequence[LocalMap]:
    """``y = x Wᵀ + b;  dy = dx Wᵀ,  x̄ = ȳ W``.

    >>> from jacli import jacobian
    >>> import torch
    >>> from torch.nn import functional as F
    >>> weight = torch.tensor([[5.0, 7.0]])
    >>> jacobian(lambda x: F.linear(x, weight), torch.ones(1, 2), method="adjoint")[0].tolist()
    [[5.0], [7.0]]
    """
    call.only("input")
    if call["weight"].dim() != 2:  # a vector: the result has no last axis
        raise NoRule
    return [Product(call["weight"], call.settings, call.key("weight"))]


def _left(call: Call, a: str, b: str) -> Sequence[LocalMap]:
    """``da -> da b``, by a `Product` where b is constant."""
    if not call.is_live(b):
        return [Product(call[b].t(), call.settings, call.key(b))]
    return [LeftOperand(call[b].to(call.settings.dtype))]


def _right(call: Call, b: str, a: str) -> Sequence[LocalMap]:
    """``db -> a db``."""
    return [RightOperand(call[a].to(call.settings.dtype))]


def _batched_left(call: Call, a: str, b: str) -> Sequence[LocalMap]:
    """``da -> da b``, a matrix b per sample."""
    return [LeftOperand(call[b].to(call.settings.dtype))]


bilinear("mm", a="self", b="mat2", times_b=_left, times_a=_right)  # y = a b, two axes each
bilinear("bmm", a="self", b="mat2", times_b=_batched_left, times_a=_right)  # y = a b, three axes each


@rule("addmm")
def addmm(call: Call) -> None:
    """``y = beta x + alpha a b;  dy = beta dx + alpha (da b + a db)``.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: torch.addmm(x, x, torch.full((2, 2), 3.0)), x, method="adjoint")[0].tolist()
    [[4.0, 3.0], [3.0, 4.0]]
    """
    alpha, beta = _multiple(call["alpha"]), _multiple(call["beta"])
    if call.is_live("self"):
        call.edge("self", Broadcast(call["self"].shape, call.out.shape), *beta)
    if call.is_live("mat1"):
        call.edge("mat1", *_left(call, "mat1", "mat2"), *alpha)
    if call.is_live("mat2"):
        call.edge("mat2", *_right(call, "mat2", "mat1"), *alpha)


@rule("matmul")
def matmul(call: Call) -> None:
    """``y = a b;  dy = da b + a db,  ā = ȳ bᵀ,  b̄ = aᵀ ȳ``, batch axes broadcast.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.unsqueeze(1) @ x.unsqueeze(2), x, method="adjoint").flatten().tolist()
    [2.0, 4.0]
    """
    a, b = call["self"], call["other"]
    if a.dim() < 2 or b.dim() < 2:
        raise NoRule
    if b.dim() == 2 and not call.is_live("other"):
        call.edge("self", *_left(call, "self", "other"))
        return
    batch = call.out.shape[:-2]
    for name, value, other, kind in (("self", a, b, LeftOperand), ("other", b, a, RightOperand)):
        spread = torch.Size((*batch, *value.shape[-2:]))
        first = [] if spread == value.shape else [Broadcast(value.shape, spread)]
        against = other.expand(*batch, *other.shape[-2:]).to(call.settings.dtype)
        call.edge(name, *first, kind(against))


def _multiple(factor: float) -> list[LocalMap]:
    return [] if factor == 1 else [Multiple(factor)]
