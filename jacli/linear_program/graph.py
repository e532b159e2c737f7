"""Nodes of a traced graph: their operators, their values, and the operators without a derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

NO_DERIVATIVE = frozenset(
    (
        *("detach", "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "sign", "round", "floor", "ceil", "trunc"),
    )
)
"""Operators whose result is floating but whose derivative is zero everywhere."""


class NotTraceableError(Exception):
    """The network cannot be traced; the text says why, for the notes of the plan."""


def operator_name(node: fx.Node) -> str:
    """An operator's name without its overload: ``conv2d``.

    >>> graph = torch.fx.symbolic_trace(lambda x: torch.relu(x)).graph
    >>> [operator_name(node) for node in graph.nodes if node.op == "call_function"]
    ['relu']
    """
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def value_of(node: fx.Node) -> Any:
    """Value of a node at the batch size of the trace: a fake tensor, a tuple of them, or a number."""
    return node.meta.get("val")
