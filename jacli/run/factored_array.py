"""A Jacobian that is written from its factors, piece by piece, without ever being formed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from jacli.device.hardware import is_gpu
from jacli.device.transfer import QueuedWork, StagingBuffer
from jacli.linear_maps import FactoredMap


@dataclass(frozen=True)
class FactoredArray:
    """``left @ right`` as an array ``(batch, *domain, *output)`` of which pieces can be taken.

    A piece of some pixels is one matrix product, and comes out with the classes last, as files have it:
    no transposition, and nothing the size of a sample in memory.

    Attributes:
        factors: The factors of a batch.
        domain_shape: Of what is differentiated with respect to, per sample.
        output_shape: Per sample.
        ready: On a GPU: the work that computes the factors.
        staging: On a GPU: the memory that pieces arrive in, one after the other.
    """

    factors: FactoredMap
    domain_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    ready: QueuedWork | None = None
    staging: StagingBuffer = field(default_factory=StagingBuffer)

    @classmethod
    def of(
        cls, factors: FactoredMap, domain_shape: tuple[int, ...], output_shape: tuple[int, ...]
    ) -> FactoredArray:
        """The product of factors that the current stream computes; pieces may be taken on another one."""
        device = factors.left.device
        ready = QueuedWork(device) if is_gpu(device) else None
        return cls(factors, domain_shape, output_shape, ready)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(batch, *domain, *output)``."""
        return (self.factors.batch, *self.domain_shape, *self.output_shape)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the pieces."""
        numpy_dtype: np.dtype = self.factors.right[:0].cpu().numpy().dtype
        return numpy_dtype

    def __len__(self) -> int:
        return self.factors.batch

    def __getitem__(self, piece: tuple[slice, ...]) -> np.ndarray:
        """The numbers in a box, a slice for every axis; from a GPU they hold until the next is asked for."""
        if self.ready is not None:
            self.ready.wait()
        samples, inner = piece[0], piece[1:]
        split = len(self.domain_shape)
        right = self.factors.right[samples].unflatten(2, self.domain_shape or (1,))
        right = right[(slice(None), slice(None), *inner[:split])]
        left = self.factors.left[samples].unflatten(1, self.output_shape or (1,))
        left = left[(slice(None), *inner[split:])]
        rank = right.shape[1]
        pixels = right.reshape(len(right), rank, -1).mT
        classes = left.reshape(len(left), -1, rank).mT
        product: Tensor = pixels @ classes
        box = (len(right), *right.shape[2:][:split], *left.shape[1:-1][: len(self.output_shape)])
        return self._on_host(product.detach().reshape(box))

    def _on_host(self, product: Tensor) -> np.ndarray:
        if self.ready is None:
            numbers: np.ndarray = product.numpy()
            return numbers
        return self.staging.copy(product)
