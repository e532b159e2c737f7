"""Hooks that a module's owner registered: which of them belong to the function that it computes.

Importing this imports no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

BACKWARD = ("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook", "_non_full_backward_hooks")
"""Attributes of a module that say what happens to gradients on their way back."""

_FORWARD = ("_forward_pre_hooks", "_forward_hooks")


def drop_backward_hooks(module: nn.Module) -> None:
    """Remove hooks on gradients; in place.

    They watch or change gradients, not the function: a Jacobian in forward mode or by a traced graph never
    meets them.  Forward hooks stay: they may be part of the function, as those of spectral normalisation and
    of pruning (``torch.nn.utils``) are.

    >>> from torch import nn
    >>> layer = nn.Linear(3, 2)
    >>> _ = layer.register_full_backward_hook(print)
    >>> drop_backward_hooks(layer)
    >>> len(layer._backward_hooks)
    0
    """
    for part in _python_parts(module):
        for name in set(BACKWARD) & set(vars(part)):
            setattr(part, name, None if name == "_is_full_backward_hook" else OrderedDict())


def forward_hooks(module: nn.Module) -> list[str]:
    """Names of the functions that are called around the forward pass, without torch's own.

    >>> from torch import nn
    >>> def clamp(layer, inputs):
    ...     return inputs[0].clamp(0, 1)
    >>> layer = nn.Linear(3, 2)
    >>> _ = layer.register_forward_pre_hook(clamp)
    >>> forward_hooks(layer)
    ['clamp']
    """
    hooks: list[Any] = [
        hook
        for part in _python_parts(module)
        for kind in _FORWARD
        for hook in vars(part).get(kind, {}).values()
    ]
    homes = [(hook, getattr(hook, "__module__", None) or "") for hook in hooks]
    return [
        getattr(hook, "__name__", type(hook).__name__)
        for hook, home in homes
        if home.partition(".")[0] != "torch"
    ]


def _python_parts(module: nn.Module) -> Iterator[nn.Module]:
    import torch

    return (part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule))
