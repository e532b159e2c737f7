"""Linear maps, one a sample: the shared language of the rooms above.

At a sample ``x`` a network ``f`` is, to first order, the linear map ``J = df/dx`` of shape
``(n_out, n_in)``.  A batch of independent samples is a batch of such maps.  Everything in jacli
either fills in the matrix (`Block`) or pushes vectors through it (`LinearMap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from jacli.device.matrix_product import product


class LinearMap(Protocol):
    """A batch of linear maps: sample ``b`` has the matrix ``J[b]`` of shape ``(n_out, n_in)``.

    Attributes:
        batch: Number of samples.
        n_out: Rows of each matrix (flattened outputs).
        n_in: Columns of each matrix (flattened inputs).
    """

    @property
    def batch(self) -> int: ...

    @property
    def n_out(self) -> int: ...

    @property
    def n_in(self) -> int: ...

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Rows out of outputs: ``(k, batch, n_out) -> (k, batch, n_in)``, ``u[i, b] -> u[i, b] @ J[b]``."""
        ...

    def jvp(self, tangents: Tensor) -> Tensor:
        """Outputs out of inputs: ``(k, batch, n_in) -> (k, batch, n_out)``, ``v[i, b] -> J[b] @ v[i, b]``."""
        ...


@dataclass(frozen=True)
class Block:
    """A piece of the Jacobians of a batch: ``values[b, i, j] = J[b][outputs.start + i, inputs.start + j]``.

    Reverse methods yield rows (``inputs`` spans everything), forward methods columns (``outputs``
    spans everything); over one method's blocks every entry comes exactly once.

    Attributes:
        outputs: Half-open range of flattened outputs.
        inputs: Half-open range of flattened inputs.
        values: ``(batch, len(outputs), len(inputs))``.
    """

    outputs: range
    inputs: range
    values: Tensor


class Matrices(LinearMap, Protocol):
    """A `LinearMap` of which rows can be read: what a method made of a block of samples."""

    @property
    def nbytes(self) -> int: ...

    def rows(self, index: Tensor) -> Tensor:
        """Rows ``index`` (k,) of every matrix, ``(batch, k, n_in)``."""
        ...

    def dense(self) -> Tensor:
        """The matrices themselves, ``(batch, n_out, n_in)``."""
        ...

    def samples(self, start: int, stop: int) -> Matrices:
        """Those of some consecutive samples only."""
        ...


@dataclass(frozen=True)
class Chain:
    """The product of linear maps: ``J = maps[-1] ... maps[1] maps[0]``, the first nearest the input.

    Pushing a vector through costs the sum of the maps; nothing is multiplied out.

    >>> double = DenseMap(torch.tensor([[[2.0, 0.0], [0.0, 2.0]]]))
    >>> total = DenseMap(torch.tensor([[[1.0, 1.0]]]))
    >>> Chain((double, total)).jvp(torch.tensor([[[3.0, 4.0]]]))  # 2 (3 + 4)
    tensor([[[14.]]])

    Raises:
        ValueError: No map, or neighbours whose sizes differ.
    """

    maps: tuple[LinearMap, ...]

    def __post_init__(self) -> None:
        if not self.maps or any((a.n_out, a.batch) != (b.n_in, b.batch) for a, b in pairwise(self.maps)):
            raise ValueError("the links of a chain must fit together")

    @property
    def batch(self) -> int:
        return self.maps[0].batch

    @property
    def n_out(self) -> int:
        return self.maps[-1].n_out

    @property
    def n_in(self) -> int:
        return self.maps[0].n_in

    def vjp(self, cotangents: Tensor) -> Tensor:
        for link in reversed(self.maps):
            cotangents = link.vjp(cotangents)
        return cotangents

    def jvp(self, tangents: Tensor) -> Tensor:
        for link in self.maps:
            tangents = link.jvp(tangents)
        return tangents


@dataclass(frozen=True)
class DenseMap:
    """A `LinearMap` whose matrices are in memory.

    One sample with a 2 x 3 matrix; a cotangent picks a row, a tangent a column:

    >>> J = DenseMap(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))
    >>> J.vjp(torch.tensor([[[0.0, 1.0]]]))
    tensor([[[4., 5., 6.]]])
    >>> J.jvp(torch.tensor([[[0.0, 1.0, 0.0]]]))
    tensor([[[2., 5.]]])

    Attributes:
        matrices: ``(batch, n_out, n_in)``.
    """

    matrices: Tensor

    @property
    def batch(self) -> int:
        return self.matrices.shape[0]

    @property
    def n_out(self) -> int:
        return self.matrices.shape[1]

    @property
    def n_in(self) -> int:
        return self.matrices.shape[2]

    def vjp(self, cotangents: Tensor) -> Tensor:
        return (cotangents.transpose(0, 1) @ self.matrices).transpose(0, 1)

    def jvp(self, tangents: Tensor) -> Tensor:
        return (tangents.transpose(0, 1) @ self.matrices.mT).transpose(0, 1)

    @property
    def nbytes(self) -> int:
        return self.matrices.nbytes

    def rows(self, index: Tensor) -> Tensor:
        return self.matrices[:, index]

    def dense(self) -> Tensor:
        return self.matrices

    def samples(self, start: int, stop: int) -> DenseMap:
        return DenseMap(self.matrices[start:stop])


@dataclass(frozen=True)
class FactoredMap(Chain):
    """Two factors in memory, ``J = left @ right``, of which the product need never be formed.

    Attributes:
        left: ``(batch, n_out, r)``.
        right: ``(batch, r, n_in)``.
    """

    maps: tuple[LinearMap, ...] = field(init=False)
    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "maps", (DenseMap(self.right), DenseMap(self.left)))
        super().__post_init__()

    @property
    def nbytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    def rows(self, index: Tensor) -> Tensor:
        return product(self.left[:, index], self.right)

    def dense(self) -> Tensor:
        return product(self.left, self.right)

    def samples(self, start: int, stop: int) -> FactoredMap:
        return FactoredMap(self.left[start:stop], self.right[start:stop])


Extra = Mapping[str, object]
"""Further arguments of a forward pass: a value, or a tensor with one row a sample."""


class Network(Protocol):
    """A network as the rooms see it: frozen, in eval mode, one tensor in and one tensor out."""

    @property
    def module(self) -> nn.Module: ...

    def __call__(self, x: Tensor, extra: Extra) -> Tensor:
        """Run on a batch: ``(batch, *input) -> (batch, *output)``."""
        ...

    def copied(self) -> Network:
        """The same network on a copy of the module: calling it leaves the module as it was."""
        ...

    def renewing(self) -> Network:
        """The same network that runs every forward pass on a fresh copy of the module."""
        ...

    def saving_copies(self) -> Network:
        """The same network that saves copies of tensors for its reverse passes, whatever overwrites them."""
        ...


class Linearization(LinearMap, Protocol):
    """A network at a batch of points: its Jacobians as linear maps, by every primitive autograd has."""

    def pull(self, cotangents: Tensor) -> Tensor:
        """One plain reverse pass: ``(batch, n_out) -> (batch, n_in)``, no batching rule involved."""
        ...

    def adjoint(self, cotangents: Tensor) -> Tensor:
        """As `vjp`, by the adjoint program, in the precision asked for."""
        ...

    def tangent(self, tangents: Tensor) -> Tensor:
        """As `jvp`, by the tangent program, in the precision asked for."""
        ...

    def at(self, index: Tensor, *, noise: float = 0.0, seed: int = 0) -> Linearization:
        """The same network at samples ``index`` of this batch: fewer, reordered or repeated.

        Args:
            index: ``(m,)``.
            noise: Moves every input by Gaussian noise of this size, relative to it or to the root mean square
                of its sample, whichever is larger.
            seed: Of the noise.
        """
        ...

    @property
    def outputs(self) -> Tensor:
        """All outputs at the points, ``(batch, *output)``."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


class CutLinearization(Linearization, Protocol):
    """A network at a batch of points that can also be linearised piece by piece.

    The network is cut at ``n_links - 1`` places; link 0 is nearest the input.
    """

    @property
    def n_links(self) -> int: ...

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers a sample at the input, at each cut and at the output: ``n_links + 1`` of them."""
        ...

    @property
    def narrowest(self) -> int:
        """Number of the narrowest cut, from 1."""
        ...

    def span(self, first: int, last: int) -> ClosableLinearization:
        """Links ``first`` to ``last - 1`` as one network at these points."""
        ...


class ClosableLinearization(Linearization, Protocol):
    """One that holds activations until it is closed."""

    def close(self) -> None: ...
