"""Local linear maps: the derivative of one operator with respect to one operand, at a block of samples.

A vector is a cotangent or a tangent of a value of the network.  For a value of shape ``S`` (batch axis
included) k vectors are one tensor ``(k, *S)``.  A map from a value of shape ``I`` to one of shape ``O`` has

``pull``: ``(k, *O) -> (k, *I)``, cotangents from the operator's result to its operand (the transposed map);
``push``: ``(k, *I) -> (k, *O)``, tangents from the operand to the result.

``mine`` says that nobody else reads the vectors given: a map may then write its result into them.  A map
that only puts numbers into their place, zeros elsewhere, may besides have ``pull_into`` or ``push_into``,
which add to vectors that are there already: then no zeros are made, and no second tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Key = tuple[object, ...]
"""Names what a constant was made from, over all blocks: what is prepared from it can be kept."""


class LocalMap(Protocol):
    """One linear map, shared by all k vectors."""

    def pull(self, g: Tensor, *, mine: bool) -> Tensor: ...

    def push(self, t: Tensor, *, mine: bool) -> Tensor: ...


@dataclass(frozen=True)
class Reshaped:
    """The same numbers in the same order, of another shape."""

    shape_in: torch.Size
    shape_out: torch.Size

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return g.reshape(len(g), *self.shape_in)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return t.reshape(len(t), *self.shape_out)


@dataclass(frozen=True)
class FlattenedImage:
    """Images ``(batch, c, h, w)`` to rows in the order ``(h, w, c)``, as convolutions hold them in memory."""

    shape_in: torch.Size

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        batch, c, h, w = self.shape_in
        return g.reshape(len(g), batch, h, w, c).permute(0, 1, 4, 2, 3)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return t.permute(0, 1, 3, 4, 2).flatten(2)


@dataclass(frozen=True)
class Permuted:
    """Axis i of the result is axis ``dims[i]`` of the operand."""

    dims: tuple[int, ...]

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        inverse = sorted(range(len(self.dims)), key=self.dims.__getitem__)
        return g.permute(0, *(1 + i for i in inverse))

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return t.permute(0, *(1 + i for i in self.dims))


@dataclass(frozen=True)
class Broadcast:
    """The operand repeated along axes of size one, and new axes in front: pulled, they are summed over."""

    shape_in: torch.Size
    shape_out: torch.Size

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        new = len(self.shape_out) - len(self.shape_in)
        old = [i for i, n in enumerate(self.shape_in) if n == 1 and self.shape_out[new + i] != 1]
        axes = [*range(1, new + 1), *(1 + new + i for i in old)]
        summed = g.sum(axes) if axes else g
        return summed.reshape(len(g), *self.shape_in)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
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

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        whole = empty_laid_out((len(g), *self.shape_in), g.stride(), g).zero_()
        self._part(whole).copy_(g)
        return whole

    def pull_into(self, g: Tensor, into: Tensor) -> None:
        self._part(into).add_(g)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return self._part(t)


@dataclass(frozen=True)
class Transposed:
    """What pulls as another map pushes, and pushes as it pulls: sums of `Broadcast`, for one."""

    inverse: LocalMap

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return self.inverse.push(g, mine=mine)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        return self.inverse.pull(t, mine=mine)


@dataclass(frozen=True)
class Placed(Transposed):
    """The operand as a part of the result, zeros elsewhere: the transposed of `Sliced`."""

    inverse: Sliced

    def push_into(self, t: Tensor, into: Tensor) -> None:
        self.inverse.pull_into(t, into)


class Diagonal:
    """Every number times a factor of its own: the derivative of whatever acts number by number.

    Args:
        factors: Of the shape of the value, or broadcast over it; of any dtype, masks too.
    """

    def __init__(self, factors: Tensor) -> None:
        self.factors = factors

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        self._lay_out_as(g)
        return g.mul_(self.factors) if mine else g * self.factors

    push = pull

    def _lay_out_as(self, vectors: Tensor) -> None:
        """In the vectors' dtype and order of memory: any other makes a product several times as slow."""
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
    """A factor for each index of one axis (a channel), the same at every sample: foldable into weights.

    Attributes:
        factors: ``(n,)``, exact.
        carried: The same in the passes' dtype.
        axis: Which axis of the value; negative, from the end.
        key: What the factors were made from, if from constants alone.
    """

    factors: Tensor
    carried: Tensor
    axis: int
    key: Key | None

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        factors = self.carried.reshape(-1, *(1,) * (-self.axis - 1))
        return g.mul_(factors) if mine else g * factors

    push = pull


@dataclass(frozen=True)
class Multiple:
    """One number times everything."""

    factor: float

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        return g.mul_(self.factor) if mine else g * self.factor

    push = pull


def empty_laid_out(shape: Sequence[int], strides: Sequence[int], like: Tensor) -> Tensor:
    """Memory of a shape whose axes follow one another as those of the strides do; else as ``like``."""
    order = sorted(range(len(shape)), key=lambda i: (-strides[i], -shape[i]))
    back = sorted(range(len(shape)), key=order.__getitem__)
    return like.new_empty([shape[i] for i in order]).permute(back)


def is_dense(t: Tensor) -> bool:
    """Whether no two of its numbers share memory (as in an expanded tensor): it may be written to."""
    return all(stride != 0 or size == 1 for size, stride in zip(t.shape, t.stride(), strict=True))
