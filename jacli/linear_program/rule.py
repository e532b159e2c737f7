"""How an operator gets its rule: by the decorator `rule`, or by one of three kinds.

=============  ==============  =========================  =================================
kind           operator        tangent                    cotangent
=============  ==============  =========================  =================================
`linear`       ``y = L x``     ``dy = L dx``              ``x̄ = Lᵀ ȳ``
`elementwise`  ``y = f(x)``    ``dy = f'(x) * dx``        ``x̄ = f'(x) * ȳ``
`bilinear`     ``y = a ∘ b``   ``dy = da ∘ b + a ∘ db``   ``ā = (∘ b)ᵀ ȳ,  b̄ = (a ∘)ᵀ ȳ``
=============  ==============  =========================  =================================

Operators are named as in ATen, without overloads: ``conv2d`` for ``torch.ops.aten.conv2d.default``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.graph import operator_name
from jacli.linear_program.local_map import Diagonal, LocalMap

Rule = Callable[[Call], None]
"""Records the local Jacobians of one call of an operator, with `Call.edge`."""

Maps = Callable[[Call], Sequence[LocalMap]]
"""The maps from an operator's first operand to its result, in the order of the forward pass."""

RULES: dict[str, Rule] = {}
"""Operator to its rule."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of these operators.

    The rule reads the operands by their names in the operator's schema and records the local Jacobian of each
    with `Call.edge`.  It raises `NoRule` for a call that it does not cover; autograd then differentiates that
    call (`jacli.linear_program.autograd_fallback`).

    Raises:
        ValueError: An operator has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in operators:
            if name in RULES:
                raise ValueError(f"the operator {name} has two rules")
            RULES[name] = function
        return function

    return register


def linear(*operators: str) -> Callable[[Maps], Maps]:
    """Register operators that are linear in their first operand, ``y = L x``.

    The decorated function returns L: the maps from x to y.
    """

    def register(maps: Maps) -> Maps:
        @rule(*operators)
        def apply(call: Call) -> None:
            call.edge(call.first, *maps(call))

        return maps

    return register


def elementwise(*operators: str, slope: Callable[[Call], Tensor]) -> None:
    """Register operators that act number by number on their first operand, ``y = f(x)``.

    Args:
        operators: Their names.
        slope: ``f'(x)`` in the shape of x; a mask where it is 0 or 1.
    """

    @rule(*operators)
    def apply(call: Call) -> None:
        call.only(call.first)
        if call.out.shape != call[call.first].shape:  # a larger exponent or bound broadcasts the operand
            raise NoRule
        call.edge(call.first, Diagonal(slope(call)))


def bilinear(
    *operators: str,
    a: str,
    b: str,
    times_b: Callable[[Call, str, str], Sequence[LocalMap]],
    times_a: Callable[[Call, str, str], Sequence[LocalMap]],
) -> None:
    """Register products of two operands, ``y = a ∘ b``, each of which may depend on the input.

    Args:
        operators: Their names.
        a: Name of the left operand in the operator's schema.
        b: Name of the right operand.
        times_b: The maps ``da -> da ∘ b``, of ``(call, a, b)``.
        times_a: The maps ``db -> a ∘ db``, of ``(call, b, a)``.
    """

    @rule(*operators)
    def apply(call: Call) -> None:
        for operand, other, maps in ((a, b, times_b), (b, a, times_a)):
            if call.is_live(operand):
                call.edge(operand, *maps(call, operand, other))


def find_rule(node: fx.Node) -> Rule | None:
    """The rule of a node's operator; None if there is none.

    >>> from torch import fx
    >>> import torch
    >>> graph = fx.symbolic_trace(lambda x: torch.ops.aten.relu.default(x).cumsum(1)).graph
    >>> [find_rule(node) is not None for node in graph.nodes if node.op == "call_function"]
    [True]
    """
    return RULES.get(operator_name(node))
