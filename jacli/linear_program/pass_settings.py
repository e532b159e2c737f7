"""How one pass carries its vectors: dtype, device and memory format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jacli.linear_program.weight_cache import WeightCache


@dataclass(frozen=True)
class PassSettings:
    """Dtype, device and memory format of the propagated vectors, and a cache of transformed weights.

    Attributes:
        dtype: Of the vectors and of everything they are multiplied by.
        device: Of the same.
        channels_last: Whether images are stored in the order ``n h w c``.  Convolutions on a CPU and on a
            GPU's tensor cores (bf16, TF32) are faster in this order; exact float32 on a GPU is faster in
            ``n c h w``.
        weights: Transformed weights, kept from batch to batch.
    """

    dtype: torch.dtype
    device: torch.device
    channels_last: bool
    weights: WeightCache

    def images(self, t: Tensor) -> Tensor:
        """``(n, c, h, w)`` in this memory format, copied if need be; a tensor without four axes as it is."""
        if t.dim() != 4:
            return t
        return t.contiguous(
            memory_format=torch.channels_last if self.channels_last else torch.contiguous_format
        )

    def empty_images(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Uninitialised images of shape ``(n, c, h, w)`` in this memory format."""
        n, c, h, w = shape
        return like.new_empty(n, h, w, c).permute(0, 3, 1, 2) if self.channels_last else like.new_empty(shape)
