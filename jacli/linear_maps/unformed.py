"""A linear map whose rows are computed as they are read: a matrix that nobody has formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_maps.maps import LinearMap, Samples, Wrapper


@dataclass(frozen=True)
class UnformedMap(Wrapper):
    """Products with vectors are those of another map, and rows are products with unit vectors.

    It stands where `Matrices` are asked for, and holds nothing itself.

    >>> from jacli.linear_maps import DenseMap
    >>> J = UnformedMap(DenseMap(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])), vectors_per_pass=1)
    >>> J.rows(torch.tensor([1])), J.nbytes
    (tensor([[[3., 4.]]]), 0)

    Attributes:
        whole: The map.
        vectors_per_pass: Unit vectors per pass.
    """

    whole: LinearMap
    vectors_per_pass: int

    @property
    def nbytes(self) -> int:
        return 0

    def vjp(self, cotangents: Tensor) -> Tensor:
        return self.whole.vjp(cotangents)

    def jvp(self, tangents: Tensor) -> Tensor:
        return self.whole.jvp(tangents)

    def rows(self, index: Tensor) -> Tensor:
        unit = torch.nn.functional.one_hot(index.to(self.device), self.n_out).to(self.dtype)
        chunks = unit[:, None].expand(-1, self.batch, -1).split(self.vectors_per_pass)
        return torch.cat([self.whole.vjp(chunk) for chunk in chunks]).transpose(0, 1)

    def dense(self) -> Tensor:
        return self.rows(torch.arange(self.n_out))

    def take(self, samples: Samples) -> UnformedMap:
        return UnformedMap(self.whole.take(samples), self.vectors_per_pass)
