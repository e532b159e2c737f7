"""Whether a module still is what a copy of it was made of.

What `copy.deepcopy` copies is compared, wherever it hangs: parameters, buffers, numbers in an object that
holds the settings, a tensor or an array in an attribute.  What it shares (functions, classes, what these
close over) is the same in both whatever happens to it.  Of what cannot be looked into nothing is taken for
granted.
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

_NOT_COMPARED = ("training", *BACKWARD)
_PLAIN = (bool, int, str, bytes, complex, range, slice, set, frozenset, torch.Size, np.generic)


def alike(model: nn.Module, twin: nn.Module) -> bool:
    """Whether a module and an earlier copy in eval mode, without hooks on gradients, still hold the same.

    Of TorchScript only parameters and buffers are seen.

    Args:
        model: The module; its training flags do not matter.
        twin: The copy.

    Cost: every parameter is read once.
    """
    return _alike(model, twin, {})


def _alike(a: object, b: object, met: dict[int, tuple[object, object]]) -> bool:
    if a is b or met.get(id(a), (a, None))[1] is b:
        return True
    met[id(a)] = a, b  # an object may hold itself
    # The copy of a TorchScript module has plain tensors as its parameters.
    if type(a) is not type(b) and {type(a), type(b)} != {Tensor, nn.Parameter}:
        return False
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and _equal(a, b)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, _PLAIN):
        return bool(a == b)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        known = a.dtype == b.dtype and a.shape == b.shape and not a.dtype.hasobject
        return known and a.tobytes() == b.tobytes()
    pairs = _parts(a), _parts(b)
    if pairs[0] is None or pairs[1] is None or list(pairs[0]) != list(pairs[1]):
        return False
    return all(_alike(part, pairs[1][name], met) for name, part in pairs[0].items())


def _parts(value: object) -> Mapping[Any, Any] | None:
    """What makes up a value, by name or place; None if that is not to be seen from outside."""
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
        return {name: part for name, part in sorted(vars(value).items()) if name not in _NOT_COMPARED}
    kind = type(value)
    opaque = kind.__reduce_ex__ is not object.__reduce_ex__ or kind.__reduce__ is not object.__reduce__
    if opaque or not hasattr(value, "__dict__") or any(hasattr(base, "__slots__") for base in kind.__mro__):
        return None
    return dict(sorted(vars(value).items()))


def _equal(a: Tensor, b: Tensor) -> bool:
    kinds = (a.dtype, a.device, a.layout, a.shape), (b.dtype, b.device, torch.strided, b.shape)
    return kinds[0] == kinds[1] and torch.equal(a, b)
