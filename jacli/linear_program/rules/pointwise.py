"""Rules of operators that act number by number: each multiplies by a slope, computed once per batch.

In all formulas ``*`` is the product number by number; operands of different shapes are broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jacli.linear_program.call import Call, NoRule
from jacli.linear_program.graph import NotTraceableError, operator_name
from jacli.linear_program.local_map import Broadcast, Diagonal, LocalMap, Multiple
from jacli.linear_program.rule import bilinear, elementwise, linear, rule


def autograd_slope(call: Call) -> Tensor:
    """``f'(x)``, as autograd gives it for a cotangent of ones."""
    with torch.enable_grad():
        x = call[call.first].detach().requires_grad_(True)
        y = call.node.target(x, *call.args[1:], **call.kwargs)  # type: ignore[operator]
        slope: Tensor = torch.autograd.grad(y, x, torch.ones_like(y))[0]
    return slope


def autograd_mask(call: Call) -> Tensor:
    """``f'(x)`` where it is 0 or 1: torch selects by it and does not multiply, which matters at infinity."""
    return autograd_slope(call) != 0


def finite_autograd_slope(call: Call) -> Tensor:
    """``f'(x)`` where it may be infinite, like that of a root at zero.

    Raises:
        NotTraceableError: It is not finite at some sample.
    """
    return _finite(call, autograd_slope(call))


def _finite(call: Call, slope: Tensor) -> Tensor:
    """The slope, if it is finite: an infinite slope times zero is NaN where autograd may never multiply them.

    Raises:
        NotTraceableError: It is not; only plain reverse passes are right at this batch.
    """
    if not bool(slope.isfinite().all()):
        raise NotTraceableError(f"the slope of {operator_name(call.node)} is not finite at some point")
    return slope


elementwise("relu", slope=lambda call: call.out.le(0).logical_not_())  # [y > 0], and 1 at NaN as in autograd
elementwise("clamp", "clamp_min", "clamp_max", "clip", slope=autograd_mask)
elementwise("hardtanh", "relu6", "threshold", "hardshrink", slope=autograd_mask)
elementwise("sqrt", "rsqrt", "reciprocal", "pow", slope=finite_autograd_slope)
elementwise("log", "log1p", "log2", "log10", slope=finite_autograd_slope)
elementwise("asin", "acos", "acosh", "atanh", slope=finite_autograd_slope)
elementwise("gelu", "silu", "mish", "elu", "selu", "celu", "leaky_relu", "prelu", slope=autograd_slope)
elementwise("hardswish", "hardsigmoid", "softplus", "softshrink", slope=autograd_slope)
elementwise("sigmoid", "log_sigmoid", "tanh", slope=autograd_slope)
elementwise("exp", "expm1", "exp2", "square", "neg", "abs", slope=autograd_slope)
elementwise("sin", "cos", "tan", "atan", "sinh", "cosh", "asinh", "sinc", slope=autograd_slope)
elementwise("erf", "erfc", "lgamma", "nan_to_num", slope=autograd_slope)


def _times(call: Call, operand: str, other: str) -> Sequence[LocalMap]:
    """``dx -> dx * other``."""
    factors = call[other]
    return _scaled(call, operand, factors) if isinstance(factors, Tensor) else [Multiple(float(factors))]


bilinear("mul", "multiply", a="self", b="other", times_b=_times, times_a=_times)  # y = a * b


@rule("div", "divide", "true_divide")
def divide(call: Call) -> None:
    """``y = a / b;  dy = da / b - (y / b) * db``.

    >>> from jacli import jacobian
    >>> jacobian(lambda x: 6 / x, torch.tensor([[1.0, 2.0]]), method="adjoint")[0].tolist()
    [[-6.0, -0.0], [-0.0, -1.5]]
    """
    if call.has("rounding_mode") and call["rounding_mode"] is not None:
        raise NoRule
    b = call["other"]
    if not isinstance(b, Tensor):
        call.edge("self", Multiple(1 / b))
        return
    b = b.to(call.out.dtype)
    for name, factors in (("self", b.reciprocal()), ("other", -call.out / b)):
        if call.is_live(name):
            call.edge(name, *_scaled(call, name, _finite(call, factors)))


@rule("where")
def where(call: Call) -> None:
    """``y = m * a + (1 - m) * b;  dy = m * da + (1 - m) * db``, with the condition m.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: torch.where(x > 1.5, 3 * x, x), x, method="adjoint")[0].tolist()
    [[1.0, 0.0], [0.0, 3.0]]
    """
    for name, chosen in (("self", call["condition"]), ("other", ~call["condition"])):
        if call.is_live(name):
            call.edge(name, *_scaled(call, name, chosen))


@linear("masked_fill")
def masked_fill(call: Call) -> Sequence[LocalMap]:
    """``y = (1 - m) * x + m value;  dy = (1 - m) * dx``, with the mask m.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[1.0, 2.0]])
    >>> jacobian(lambda x: x.masked_fill(x > 1.5, 0), x, method="adjoint")[0].tolist()
    [[1.0, 0.0], [0.0, 0.0]]
    """
    call.only("self")
    return _scaled(call, "self", ~call["mask"])


def _scaled(call: Call, operand: str, factors: Tensor) -> list[LocalMap]:
    """``dx -> factors * dx``, after broadcasting the operand to the shape of the result."""
    shape = call[operand].shape
    if not factors.is_floating_point() and factors.dtype != torch.bool:
        factors = factors.to(call.out.dtype)  # the product of two small integers may overflow
    spread: list[LocalMap] = [] if shape == call.out.shape else [Broadcast(shape, call.out.shape)]
    return [*spread, Diagonal(factors.expand(call.out.shape))]
