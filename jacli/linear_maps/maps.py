"""Linear maps, one per sample: the shared language of the rooms above.

At a sample ``x`` a network ``f`` is, to first order, the linear map ``J = df/dx`` of shape
``(n_out, n_in)``.  A batch of independent samples is a batch of such maps.  Everything in jacli
either fills in the matrix (`Slab`) or pushes a few vectors through (`LinearMap`).

Indices: ``k`` vectors, ``b`` samples of the batch, ``o`` outputs, ``i`` inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from jacli.device.matrix_product import product

Samples = slice | Tensor
"""Which samples of a batch: a slice, or their positions ``(m,)``, which may repeat."""


class Shaped(Protocol):
    """The sizes of a batch of matrices ``J[b]``, and the kind of vectors that go with them.

    Attributes:
        batch: Number of samples.
        n_out: Rows of each matrix (flattened outputs).
        n_in: Columns of each matrix (flattened inputs).
        dtype: Of the vectors.
        device: Where these must be.
    """

    @property
    def batch(self) -> int: ...

    @property
    def n_out(self) -> int: ...

    @property
    def n_in(self) -> int: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device(self) -> torch.device: ...


class LinearMap(Shaped, Protocol):
    """A batch of linear maps: sample ``b`` has the matrix ``J[b]`` of shape ``(n_out, n_in)``."""

    def vjp(self, cotangents: Tensor) -> Tensor:
        """Vector-Jacobian products: ``(k, b, o) -> (k, b, i)``, ``u[k, b] -> u[k, b] @ J[b]``."""
        ...

    def jvp(self, tangents: Tensor) -> Tensor:
        """Jacobian-vector products: ``(k, b, i) -> (k, b, o)``, ``v[k, b] -> J[b] @ v[k, b]``."""
        ...

    def take(self, samples: Samples) -> LinearMap:
        """The maps of some samples."""
        ...


class Matrices(LinearMap, Protocol):
    """A `LinearMap` of which rows can be read: what a method made of a batch."""

    @property
    def nbytes(self) -> int: ...

    def rows(self, index: Tensor) -> Tensor:
        """Rows ``index`` (k,) of every matrix, ``(b, k, i)``."""
        ...

    def dense(self) -> Tensor:
        """The matrices themselves, ``(b, o, i)``."""
        ...

    def take(self, samples: Samples) -> Matrices: ...


@dataclass(frozen=True)
class Slab:
    """A range of rows or of columns of each sample's matrix.

    ``values[b, o, i] = J[b][outputs.start + o, inputs.start + i]``.  Reverse methods yield rows (``inputs``
    spans everything), forward methods columns (``outputs`` spans everything); over one method's slabs every
    entry comes exactly once.

    Attributes:
        outputs: Half-open range of flattened outputs.
        inputs: Half-open range of flattened inputs.
        values: ``(b, len(outputs), len(inputs))``.
    """

    outputs: range
    inputs: range
    values: Tensor


@dataclass(frozen=True)
class Chain:
    """The product of linear maps: ``J = maps[-1] ... maps[1] maps[0]``, the first nearest the input.

    Pushing a vector through costs the sum of the maps; nothing is multiplied out.

    >>> first = DenseMap(torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    >>> second = DenseMap(torch.tensor([[[1.0, 1.0]]]))
    >>> Chain((first, second)).vjp(torch.ones(1, 1, 1))  # [1 1] @ diag(1, 2)
    tensor([[[1., 2.]]])

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

    @property
    def dtype(self) -> torch.dtype:
        return self.maps[0].dtype

    @property
    def device(self) -> torch.device:
        return self.maps[0].device

    def vjp(self, cotangents: Tensor) -> Tensor:
        for link in reversed(self.maps):
            cotangents = link.vjp(cotangents)
        return cotangents

    def jvp(self, tangents: Tensor) -> Tensor:
        for link in self.maps:
            tangents = link.jvp(tangents)
        return tangents

    def take(self, samples: Samples) -> LinearMap:
        return Chain(tuple(link.take(samples) for link in self.maps))


@dataclass(frozen=True)
class DenseMap:
    """A `LinearMap` whose matrices are in memory.

    >>> J = DenseMap(torch.tensor([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]))  # one sample, 2 x 3
    >>> J.vjp(torch.tensor([[[1.0, 0.0]]])), J.jvp(torch.tensor([[[0.0, 0.0, 1.0]]]))
    (tensor([[[1., 2., 3.]]]), tensor([[[3., 6.]]]))

    Attributes:
        matrices: ``(b, o, i)``.
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

    @property
    def dtype(self) -> torch.dtype:
        return self.matrices.dtype

    @property
    def device(self) -> torch.device:
        return self.matrices.device

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

    def take(self, samples: Samples) -> DenseMap:
        return DenseMap(self.matrices[samples])


@dataclass(frozen=True)
class FactoredMap(Chain):
    """Two factors in memory, ``J = left @ right``, of which the product need never be formed.

    >>> J = FactoredMap(left=torch.tensor([[[1.0], [2.0]]]), right=torch.tensor([[[3.0, 4.0, 5.0]]]))
    >>> J.dense()
    tensor([[[ 3.,  4.,  5.],
             [ 6.,  8., 10.]]])

    Attributes:
        left: ``(b, o, r)``.
        right: ``(b, r, i)``.
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

    def take(self, samples: Samples) -> FactoredMap:
        return FactoredMap(self.left[samples], self.right[samples])


class Wrapper:
    """What is made of another map: its sizes, dtype and device are those of ``whole`` unless overridden."""

    whole: Shaped

    @property
    def batch(self) -> int:
        return self.whole.batch

    @property
    def n_out(self) -> int:
        return self.whole.n_out

    @property
    def n_in(self) -> int:
        return self.whole.n_in

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    @property
    def device(self) -> torch.device:
        return self.whole.device


@dataclass(frozen=True)
class SelectedOutputs(Wrapper):
    """Some outputs of each sample: ``S[b] J[b]``, of which ``S[b]`` picks the rows ``index[b]``.

    >>> J = DenseMap(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))
    >>> SelectedOutputs(J, torch.tensor([[2, 0]])).vjp(torch.tensor([[[1.0, 0.0]]]))  # row 2
    tensor([[[5., 6.]]])

    Attributes:
        whole: The map to all outputs.
        index: Flat index of each selected output, ``(b, k)``; one may repeat.
    """

    whole: LinearMap
    index: Tensor

    @property
    def n_out(self) -> int:
        return self.index.shape[1]

    def vjp(self, cotangents: Tensor) -> Tensor:
        k = len(cotangents)
        every = cotangents.new_zeros(k, self.batch, self.whole.n_out)
        return self.whole.vjp(every.scatter_add_(2, self.index.expand(k, -1, -1), cotangents))

    def jvp(self, tangents: Tensor) -> Tensor:
        columns = self.whole.jvp(tangents)
        return columns.gather(2, self.index.expand(len(columns), -1, -1))

    def take(self, samples: Samples) -> LinearMap:
        return SelectedOutputs(self.whole.take(samples), self.index[samples])
