"""Conversion of a module's tensors, each by itself: real floating ones and complex ones, nothing else.

``module.to(torch.float32)`` and ``module.double()`` convert a module as a whole: the first drops the
imaginary parts of complex parameters and buffers, with a warning at most, and the second leaves them behind
in complex64 (https://github.com/pytorch/pytorch/issues/95337,
https://github.com/pytorch/pytorch/issues/46374).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import torch
from torch import Tensor, nn

from jacli.models.tensors import module_tensors

_Module = TypeVar("_Module", bound=nn.Module)


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in ``dtype``, a complex one in its complex counterpart; integers and booleans as they are.

    Args:
        tensor: Of any dtype.
        dtype: Real floating: complex64 belongs to float32, complex128 to float64.
    """
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def convert(module: _Module, dtype: torch.dtype, *, only: Collection[torch.dtype] | None = None) -> _Module:
    """Convert parameters and buffers, persistent or not, each by itself as `as_dtype` does; in place.

    Args:
        module: The module.
        dtype: Real floating.
        only: The real dtypes that are converted (float32 stands for complex64 too); all if None.
    """

    def converted(tensor: Tensor) -> Tensor:
        kind = real_dtype(tensor)
        return tensor if kind is None or (only is not None and kind not in only) else as_dtype(tensor, dtype)

    module._apply(converted)  # type: ignore[no-untyped-call]  # `module.to` itself is made of it
    return module


def real_dtype(tensor: Tensor) -> torch.dtype | None:
    """The tensor's floating dtype, of a complex one that of its two parts; None of integers and booleans."""
    if tensor.is_complex():
        return tensor.dtype.to_real()
    return tensor.dtype if tensor.is_floating_point() else None


def real_dtypes(module: nn.Module) -> frozenset[torch.dtype]:
    """The real dtypes of a module's floating and complex parameters and buffers."""
    kinds = map(real_dtype, module_tensors(module))
    return frozenset(kind for kind in kinds if kind is not None)


def widest(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """The dtype with the most bits."""
    return max(dtypes, key=lambda dtype: (torch.finfo(dtype).bits, str(dtype)))


def holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether every number of the real dtype ``other`` is one of ``dtype`` too."""
    own, others = torch.finfo(dtype), torch.finfo(other)
    return own.eps <= others.eps and own.max >= others.max and own.tiny <= others.tiny
