"""Rules of operators that act number by number: a factor each, computed once a block."""

from __future__ import annotations

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.graph import NotTraceableError, operator_name
from jacli.linear_program.local_map import Broadcast, Diagonal, LocalMap, Multiple


def pointwise(call: Call) -> None:
    """``y = f(x)`` of each number: the factor is f'(x), as autograd gives it for a cotangent of ones."""
    name, factors = _slopes(call)
    call.edge(name, Diagonal(factors))


def mask(call: Call) -> None:
    """Where the factor is 0 or 1: torch picks by it and does not multiply, which matters at infinity."""
    name, factors = _slopes(call)
    call.edge(name, Diagonal(factors != 0))


def steep(call: Call) -> None:
    """Where the factor may be infinite, as that of a root is at zero."""
    name, factors = _slopes(call)
    _require_finite(call, factors)
    call.edge(name, Diagonal(factors))


def _slopes(call: Call) -> tuple[str, Tensor]:
    """The operand's name, and f' at each of its numbers."""
    name = "input" if call.has("input") and not call.has("self") else "self"
    call.only(name)
    x = call[name]
    if call.out.shape != x.shape:  # a larger exponent or bound: the operand is broadcast
        raise NoRule
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        arguments = (leaf, *call.args[1:])
        y = call.node.target(*arguments, **call.kwargs)  # type: ignore[operator]
        (factors,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    return name, factors


def _require_finite(call: Call, factors: Tensor) -> None:
    """An infinite factor times a zero is no number, where autograd may never have multiplied them.

    Raises:
        NotTraceableError: Plain passes have to serve this block.
    """
    if not bool(factors.isfinite().all()):
        raise NotTraceableError(f"the slope of {operator_name(call.node)} is not finite at some point")


def relu(call: Call) -> None:
    """0 where the result is, else 1 (at NaN too), as autograd has it."""
    call.edge("self", Diagonal(call.out.le(0).logical_not_()))


def mul(call: Call) -> None:
    """``self * other``, broadcast; each is the other's factor."""
    for name, other in (("self", call["other"]), ("other", call["self"])):
        if not isinstance(other, Tensor):
            call.edge(name, Multiple(float(other)))
        else:
            _factor(call, name, other)


def div(call: Call) -> None:
    """``self / other``, broadcast: factors ``1 / other`` and ``- self / other^2``."""
    if call.has("rounding_mode") and call["rounding_mode"] is not None:
        raise NoRule
    b = call["other"]
    if not isinstance(b, Tensor):
        call.edge("self", Multiple(1 / b))
        return
    b = b.to(call.out.dtype)
    for name, factors in (("self", b.reciprocal()), ("other", -call.out / b)):
        if call.is_live(name):
            _require_finite(call, factors)
            _factor(call, name, factors)


def _factor(call: Call, name: str, factors: Tensor) -> None:
    """An operand with a factor each, after it was broadcast to the shape of the result."""
    value = call[name]
    if not call.is_live(name):
        return
    spread: list[LocalMap] = []
    if value.shape != call.out.shape:
        spread = [Broadcast(value.shape, call.out.shape)]
    call.edge(name, *spread, _diagonal(call, factors))


def _diagonal(call: Call, factors: Tensor) -> LocalMap:
    if not factors.is_floating_point() and factors.dtype != torch.bool:
        factors = factors.to(call.out.dtype)  # two small integers, folded, would overflow
    return Diagonal(factors.expand(call.out.shape))


def where(call: Call) -> None:
    """``self`` where the condition holds, else ``other``."""
    for name, chosen in (("self", call["condition"]), ("other", ~call["condition"])):
        if isinstance(call[name], Tensor):
            _factor(call, name, chosen)


def masked_fill(call: Call) -> None:
    """``self`` where the mask does not hold."""
    call.only("self")
    _factor(call, "self", ~call["mask"])
