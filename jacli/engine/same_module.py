"""Does a module still equal an earlier deep copy of it?

Everything that `copy.deepcopy` copies is compared, at any depth: parameters, buffers, settings in objects,
tensors and arrays in attributes.  What a deep copy shares with its original (functions, classes, and what
they close over) is the same object in both, so a change there is not seen.  Objects that cannot be inspected
count as changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn

from jacli.models.hooks import BACKWARD

_IGNORED_ATTRIBUTES = ("training", *BACKWARD)
_COMPARED_BY_VALUE = (bool, int, str, bytes, complex, range, slice, set, frozenset, torch.Size, np.generic)


def equals_copy(module: nn.Module, copy: nn.Module) -> bool:
    """Does a module hold the same as an earlier copy of it, in eval mode and without hooks on gradients?

    In TorchScript modules, only parameters and buffers are compared.

    Args:
        module: The module; its training flags do not matter.
        copy: The copy.

    Cost: every parameter is read once.

    >>> import copy
    >>> layer = nn.Linear(3, 2)
    >>> twin = copy.deepcopy(layer)
    >>> equals_copy(layer, twin)
    True
    >>> _ = nn.init.zeros_(layer.bias)
    >>> equals_copy(layer, twin)
    False
    """
    return _equal_parts(module, copy, {})


def _equal_parts(a: object, b: object, seen: dict[int, tuple[object, object]]) -> bool:
    if a is b or seen.get(id(a), (a, None))[1] is b:
        return True
    seen[id(a)] = a, b  # an object may hold itself
    # The copy of a TorchScript module has plain tensors as its parameters.
    if type(a) is not type(b) and {type(a), type(b)} != {Tensor, nn.Parameter}:
        return False
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and _equal_tensors(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, _COMPARED_BY_VALUE):
        return bool(a == b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        known = a.dtype == b.dtype and a.shape == b.shape and not a.dtype.hasobject
        return known and a.tobytes() == b.tobytes()
    pairs = _parts(a), _parts(b)
    if pairs[0] is None or pairs[1] is None or list(pairs[0]) != list(pairs[1]):
        return False
    return all(_equal_parts(part, pairs[1][name], seen) for name, part in pairs[0].items())


def _parts(value: object) -> Mapping[Any, Any] | None:
    """The parts of a value, by name or position; None if it cannot be inspected."""
    if isinstance(value, torch.jit.ScriptModule):
        return dict((*value.named_parameters(), *value.named_buffers()))
    if isinstance(value, Mapping):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, SimpleNamespace):
        return dict(sorted(vars(value).items()))
    if isinstance(value, MethodType):
        return {"function": value.__func__, "of": value.__self__}
    if isinstance(value, ref):
        return {"to": value()}
    if isinstance(value, partial):
        return {"function": value.func, "arguments": value.args, "named": value.keywords}
    if isinstance(value, nn.Module):
        return {name: part for name, part in sorted(vars(value).items()) if name not in _IGNORED_ATTRIBUTES}
    kind = type(value)
    opaque = kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__
    if opaque or not hasattr(value, "__dict__") or any(hasattr(base, "__slots__") for base in kind.__mro__):
        return None
    return dict(sorted(vars(value).items()))


def _equal_tensors(a: Tensor, b: Tensor) -> bool:
    kinds = (a.dtype, a.device, a.layout, a.shape), (b.dtype, b.device, torch.strided, b.shape)
    return kinds[0] == kinds[1] and torch.equal(a, b)
