"""Local Jacobians: derivatives of one operator's result with respect to one operand, at a batch of samples.

A *vector* is a cotangent or a tangent of a value of the network.  One pass carries k vectors at once: for a
value of shape ``S`` (batch axis included) they are one tensor ``(k, *S)``.  A local map from ``x`` of shape
``I`` to ``y`` of shape ``O``, with the Jacobian J, computes

* ``vjp``: ``(k, *O) -> (k, *I)``, the cotangents ``x̄ = Jᵀ ȳ``;
* ``jvp``: ``(k, *I) -> (k, *O)``, the tangents ``dy = J dx``.

``may_overwrite`` says that the map may reuse the memory of its argument: nobody else reads it.  A map whose
result is zero but for a part (a slice's vjp, an embedding's jvp) may also have ``add_vjp_to`` or
``add_jvp_to``.  They add to vectors that exist already, so that the zeros are never written.

Axes: k vectors, n samples, c channels, h rows and w columns of an image, i in, o out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.weight_cache import Key, WeightCache


class LocalMap(Protocol):
    """One linear map, applied to k vectors at once."""

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor: ...

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor: ...


@dataclass(frozen=True)
class Reshaped:
    """The same numbers in the same order, in another shape."""

    shape_in: torch.Size
    shape_out: torch.Size

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return g.reshape(len(g), *self.shape_in)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return t.reshape(len(t), *self.shape_out)


@dataclass(frozen=True)
class FlattenedImage:
    """Images ``(n, c, h, w)`` flattened to ``(n, h w c)``, the order in which convolutions store them."""

    shape_in: torch.Size

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        n, c, h, w = self.shape_in
        return g.reshape(len(g), n, h, w, c).permute(0, 1, 4, 2, 3)  # k n h w c -> k n c h w

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return t.permute(0, 1, 3, 4, 2).flatten(2)  # k n c h w -> k n (h w c)


@dataclass(frozen=True)
class Permuted:
    """Axis i of the result is axis ``dims[i]`` of the operand."""

    dims: tuple[int, ...]

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return g.permute(0, *(1 + i for i in inverse))

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return t.permute(0, *(1 + i for i in self.dims))


@dataclass(frozen=True)
class Broadcast:
    """The operand repeated along axes of size one and along new leading axes; the vjp sums over them."""

    shape_in: torch.Size
    shape_out: torch.Size

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        new = len(self.shape_out) - len(self.shape_in)
        old = [i for i, n in enumerate(self.shape_in) if n == 1 and self.shape_out[new + i] != 1]
        axes = [*range(1, new + 1), *(1 + new + i for i in old)]
        summed = g.sum(axes) if axes else g
        return summed.reshape(len(g), *self.shape_in)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        new = len(self.shape_out) - len(self.shape_in)
        aligned = t.reshape(len(t), *(1,) * new, *self.shape_in)
        return aligned.expand(len(t), *self.shape_out)


@dataclass(frozen=True)
class Sliced:
    """Part of the operand along one axis: ``start, start + step, ...``."""

    axis: int
    start: int
    step: int
    shape_in: torch.Size
    shape_out: torch.Size

    def _part(self, of: Tensor) -> Tensor:
        count = self.shape_out[self.axis]
        if self.step == 1:
            return of.narrow(1 + self.axis, self.start, count)
        stop = self.start + (count - 1) * self.step + 1 if count else self.start
        index = [slice(None)] * (1 + self.axis) + [slice(self.start, stop, self.step)]
        return of[tuple(index)]

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        whole = empty_laid_out((len(g), *self.shape_in), g.stride(), g).zero_()
        self._part(whole).copy_(g)
        return whole

    def add_vjp_to(self, g: Tensor, into: Tensor) -> None:
        self._part(into).add_(g)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return self._part(t)


@dataclass(frozen=True)
class Transposed:
    """The transposed of another map, ``Jᵀ``: a sum, for example, is a transposed `Broadcast`."""

    of: LocalMap

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return self.of.jvp(g, may_overwrite=may_overwrite)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        return self.of.vjp(t, may_overwrite=may_overwrite)


@dataclass(frozen=True)
class Embedded(Transposed):
    """The operand as a part of the result, zeros elsewhere: a transposed `Sliced`."""

    of: Sliced

    def add_jvp_to(self, t: Tensor, into: Tensor) -> None:
        self.of.add_vjp_to(t, into)


class Diagonal:
    """``dy = d * dx``, number by number: the local Jacobian of every elementwise operator.

    Args:
        factors: d, in the shape of the value or broadcast to it; of any dtype, also a mask.
    """

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        self._lay_out_as(g)
        return g.mul_(self.factors) if may_overwrite else g * self.factors

    jvp = vjp

    def _lay_out_as(self, vectors: Tensor) -> None:
        """Store the factors in the vectors' dtype and memory order: any other is several times as slow."""
        factors, strides = self.factors, vectors.stride()[1:]
        ordered = factors.stride() == strides or factors.shape != vectors.shape[1:] or not is_dense(vectors)
        if factors.dtype == vectors.dtype and ordered:
            return
        if ordered:
            self.factors = factors.to(vectors.dtype)
            return
        self.factors = empty_laid_out(factors.shape, strides, vectors).copy_(factors)


@dataclass(frozen=True)
class Scale:
    """A factor for each index of one axis (a channel), the same for every sample: it folds into weights.

    Attributes:
        factors: ``(c,)``, in the model's dtype.
        carried: The same in the passes' dtype.
        axis: The axis of the value; negative, counted from the end.
        key: Names the constants that the factors were computed from; None if they change with the batch.
    """

    factors: Tensor
    carried: Tensor
    axis: int
    key: Key | None

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        factors = self.carried.reshape(-1, *(1,) * (-self.axis - 1))
        return g.mul_(factors) if may_overwrite else g * factors

    jvp = vjp


@dataclass(frozen=True)
class Multiple:
    """``dy = a dx`` with one number a."""

    factor: float

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        return g.mul_(self.factor) if may_overwrite else g * self.factor

    jvp = vjp


class WeightedMap:
    """Base of the maps with weights: each stores its weights in the layout that a direction and kernel want.

    Args:
        settings: Of the passes.
        key: Names the constants that the weights were computed from.  With a key the layouts serve all
            batches; without one (None) they serve the chunks of this batch.
    """

    def __init__(self, settings: PassSettings, key: Key | None) -> None:
        self.settings, self.key = settings, key
        self._weights = WeightCache() if key is None else settings.weights

    def laid_out(self, layout: object, make: Callable[[], Any]) -> Any:
        """The weights in a layout; ``make`` computes them the first time."""
        return self._weights.get(self.key, layout, make)

    def folded_key(self, side: str, scale: Scale) -> Key | None:
        """Key of these weights with a scale folded in on one side (``in`` or ``out``)."""
        return None if self.key is None or scale.key is None else (*self.key, side, *scale.key)


def empty_laid_out(shape: Sequence[int], strides: Sequence[int], like: Tensor) -> Tensor:
    """An uninitialised tensor whose axes are ordered in memory as the strides say; else as ``like``.

    >>> channels_last = torch.empty(1, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    >>> empty_laid_out((1, 3, 4, 4), channels_last.stride(), like=channels_last).stride()
    (48, 1, 12, 3)
    """
    order = sorted(range(len(shape)), key=lambda i: (-strides[i], -shape[i]))
    back = sorted(range(len(shape)), key=order.__getitem__)
    return like.new_empty([shape[i] for i in order]).permute(back)


def is_dense(t: Tensor) -> bool:
    """Whether no two numbers share memory (as in an expanded tensor), so that it may be overwritten.

    >>> is_dense(torch.ones(2, 3).mT), is_dense(torch.ones(2, 1).expand(2, 3))
    (True, False)
    """
    return all(stride != 0 or size == 1 for size, stride in zip(t.shape, t.stride(), strict=True))
