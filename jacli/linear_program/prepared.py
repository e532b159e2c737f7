"""How vectors are carried, and what is prepared of constants for them once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jacli.linear_program.local_map import Key, Scale


@dataclass(frozen=True)
class Passes:
    """How vectors are carried.

    Attributes:
        dtype: Of vectors and of what they are multiplied by.
        device: Where.
        images_last: Whether images lie in memory with their channels last: what convolutions on a CPU and
            those of a GPU's tensor cores (bf16, TF32) want; its kernels for exact float32 want them first.
        store: What was prepared from constants for earlier blocks (flipped kernels, folded weights).
    """

    dtype: torch.dtype
    device: torch.device
    images_last: bool
    store: dict[Any, Any]

    def images(self, t: Tensor) -> Tensor:
        """``(n, c, h, w)`` in the order of memory that convolutions want; other tensors as they are."""
        if t.dim() != 4:
            return t
        return t.contiguous(
            memory_format=torch.channels_last if self.images_last else torch.contiguous_format
        )

    def empty_images(self, like: Tensor, shape: Sequence[int]) -> Tensor:
        """Memory for images in that order."""
        n, c, h, w = shape
        return like.new_empty(n, h, w, c).permute(0, 3, 1, 2) if self.images_last else like.new_empty(shape)


class Weighted:
    """A map with weights, which it lays out anew for each direction and kernel.

    Args:
        passes: How vectors are carried.
        key: What the weights were made from, if from constants alone: then what is prepared serves all
            blocks; else the chunks of this one.
    """

    def __init__(self, passes: Passes, key: Key | None) -> None:
        self.passes, self.key = passes, key
        self._own: dict[Any, Any] = {}

    def prepared(self, name: object, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once for each name."""
        kept = self._own if self.key is None else self.passes.store
        if (self.key, name) not in kept:
            kept[self.key, name] = make()
        return kept[self.key, name]

    def folded_key(self, side: str, scale: Scale) -> Key | None:
        """Key of these weights with a scale folded in on one side."""
        return None if self.key is None or scale.key is None else (*self.key, side, *scale.key)
