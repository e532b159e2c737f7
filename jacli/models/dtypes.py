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

    >>> values = torch.zeros(2, dtype=torch.complex64), torch.tensor(3)
    >>> [as_dtype(value, torch.float64).dtype for value in values]
    [torch.complex128, torch.int64]

    Args:
        tensor: Of any dtype.
        dtype: Real floating: complex64 belongs to float32, complex128 to float64.
    """
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def convert(module: _Module, dtype: torch.dtype, *, only: Collection[torch.dtype] | None = None) -> _Module:
    """Convert parameters and buffers, persistent or not, each by itself as `as_dtype` does; in place.

    >>> layer = convert(nn.BatchNorm1d(3), torch.float64)
    >>> layer.running_mean.dtype, layer.num_batches_tracked.dtype
    (torch.float64, torch.int64)

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
    """The tensor's floating dtype, of a complex one that of its two parts; None of integers and booleans.

    >>> real_dtype(torch.zeros(2, dtype=torch.complex128)), real_dtype(torch.tensor(3))
    (torch.float64, None)
    """
    if tensor.is_complex():
        return tensor.dtype.to_real()
    return tensor.dtype if tensor.is_floating_point() else None


def real_dtypes(module: nn.Module) -> frozenset[torch.dtype]:
    """The real dtypes of a module's floating and complex parameters and buffers.

    >>> real_dtypes(nn.Linear(3, 2).half())
    frozenset({torch.float16})
    """
    kinds = map(real_dtype, module_tensors(module))
    return frozenset(kind for kind in kinds if kind is not None)


def widest(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """The dtype with the most bits.

    >>> widest([torch.float16, torch.float64, torch.float32])
    torch.float64
    """
    return max(dtypes, key=lambda dtype: (torch.finfo(dtype).bits, str(dtype)))


def holds(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether every number of the real dtype ``other`` is one of ``dtype`` too.

    >>> holds(torch.float32, torch.float16), holds(torch.float16, torch.bfloat16)
    (True, False)
    """
    own, others = torch.finfo(dtype), torch.finfo(other)
    return own.eps <= others.eps and own.max >= others.max and own.tiny <= others.tiny
