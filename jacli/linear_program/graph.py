"""The nodes of a traced graph: names of operators, values, and what no derivative flows through."""

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
"""Operators through which no derivative flows, or zeros only, although their result is floating."""


class NotTraceableError(Exception):
    """A network of which no graph can be had; the text says why, for the plan."""


def operator_name(node: fx.Node) -> str:
    """An operator's name without its overload: ``conv2d``."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def value_of(node: fx.Node) -> Any:
    """What a node is at the first trace's batch size: a fake tensor, a tuple of them, or a number."""
    return node.meta.get("val")
