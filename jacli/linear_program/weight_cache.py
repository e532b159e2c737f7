"""Cache of transformed weights: flipped kernels, folded scales, matrices in the passes' dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Key = tuple[object, ...]
"""Names the constants that a value was computed from; equal keys mean equal values, in every batch."""


class WeightCache:
    """Weights in the layouts that the passes want, each computed once.

    A linear program has one per precision, dtype and device and keeps it from batch to batch.  Memory: about
    one more copy of the weights for each direction in use.

    Example:
        >>> cache = WeightCache()
        >>> cache.get(("conv1.weight",), "flipped", lambda: 42)
        42
        >>> cache.get(("conv1.weight",), "flipped", lambda: 0)  # computed before
        42
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Key | None, object], Any] = {}

    def get(self, key: Key | None, layout: object, make: Callable[[], Any]) -> Any:
        """The weights named ``key`` in a layout; ``make`` computes them the first time."""
        if (key, layout) not in self._values:
            self._values[key, layout] = make()
        return self._values[key, layout]
