"""Observe a forward pass: does it read values of tensors, does it compute in a lower precision?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_READING = frozenset((_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default))
_LEAVING = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__))
_HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Watched:
    """What a forward pass did.

    Attributes:
        reads_values: It turned a tensor into a Python number, which control flow may depend on
            (``if x.sum() > 0``).
        halves: Which of ``float16`` and ``bfloat16`` occurred as the dtype of a result (autocast).
        singles: An operation turned float64 into float32 (a ``float()`` in the model).
    """

    reads_values: bool
    halves: frozenset[str]
    singles: bool

    def reduced(self, dtype: torch.dtype) -> str | None:
        """The coarsest dtype below the run's ``dtype`` in which the model computed; None if there is none."""
        met: list[str] = [name for name in ("bfloat16", "float16") if name in self.halves]
        if self.singles and dtype == torch.float64:
            met.append("float32")
        return met[0] if met else None


def watch(run: Callable[[], object]) -> Watched:
    """Run something and report which operations it used.

    It also observes ``item()`` inside TorchScript and exported programs, but not values that leave torch by a
    pointer.

    >>> watched = watch(lambda: torch.ones(3).half().sum().item())
    >>> watched.reads_values, watched.reduced(torch.float32)
    (True, 'float16')

    Cost: the run itself and a few microseconds per operation.
    """
    operations = _Operations()
    with operations, _Leaving(operations):
        run()
    return Watched(operations.reads, frozenset(operations.halves), operations.singles)


class _Operations(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Tell torch not to wrap the method below for its compiler, whose import takes half a second."""
        return False  # frames under a dispatch mode are not compiled anyway

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = False
        self.singles = False
        self.halves: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.reads |= func in _READING
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype in _HALVES:
                self.halves.add(str(value.dtype).removeprefix("torch."))
            if isinstance(value, Tensor) and value.dtype == torch.float32:
                given = tree_leaves((args, kwargs))
                self.singles |= any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in given)
        return result


class _Leaving(TorchFunctionMode):
    """Observes calls that hand values to Python or NumPy without an operation."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._operations.reads |= func in _LEAVING
        return func(*args, **(kwargs or {}))
