"""Operators without a rule: autograd differentiates the single operator, one vector after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from jacli.device.torch_switches import batched_pass, forward_pass
from jacli.linear_program.call import Call
from jacli.linear_program.graph import NotTraceableError, operator_name
from jacli.linear_program.local_map import is_dense


class AutogradMap:
    """Local Jacobian of an operator by autograd, one vector after the other.

    It uses no batching rules: torch's are silently wrong for some operators (``cdist``).

    Args:
        function: From the operand to the result.
        point: The operand's value.
        dtype: Of the vectors; they are cast to the operand's dtype inside.
        recurrent: Whether the operator is a recurrent layer.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], point: Tensor, dtype: torch.dtype, *, recurrent: bool
    ) -> None:
        self._function = function
        self._point = point.detach()
        self._dtype = dtype
        self._recurrent = recurrent
        self._tape: tuple[Tensor, Tensor] | None = None

    def vjp(self, g: Tensor, *, may_overwrite: bool) -> Tensor:
        with torch.enable_grad(), self._kernels():
            if self._tape is None:
                x = self._point.clone().requires_grad_(True)
                self._tape = x, self._function(x)
            x, y = self._tape
            if not y.requires_grad:
                return g.new_zeros(len(g), *x.shape)
            rows = [
                torch.autograd.grad(y, x, cotangent, retain_graph=True, materialize_grads=True)[0]
                for cotangent in g.to(y.dtype)
            ]
        return torch.stack(rows).to(self._dtype)

    def _kernels(self) -> AbstractContextManager[None]:
        """Choose kernels that have a derivative: cuDNN's recurrent layers have none in eval mode."""
        return forward_pass(recurrent=self._recurrent, device=self._point.device)

    def jvp(self, t: Tensor, *, may_overwrite: bool) -> Tensor:
        with torch.no_grad(), self._kernels(), batched_pass(recurrent=self._recurrent):
            columns = [self._column(tangent) for tangent in t.to(self._point.dtype)]
        return torch.stack(columns).to(self._dtype)

    def _column(self, tangent: Tensor) -> Tensor:
        """By a dual number: `torch.func.jvp` takes as long again for what a single operator does not need."""
        with dual_level():
            y, column = unpack_dual(self._function(make_dual(self._point, tangent)))
        return torch.zeros_like(y) if column is None else column


def differentiate_by_autograd(call: Call) -> None:
    """Record the local Jacobian of every operand that depends on the input.

    >>> from jacli import jacobian
    >>> x = torch.tensor([[2.0, 3.0]])
    >>> jacobian(lambda x: x.cumprod(1), x, method="adjoint")[0].tolist()
    [[1.0, 3.0], [0.0, 2.0]]

    Raises:
        NotTraceableError: Such an operand is a tuple of tensors.
    """
    flat: list[Any] = []
    nodes: list[Any] = []

    def note(value: Any, node: Any) -> None:
        if isinstance(node, (tuple, list)):
            for one, other in zip(value, node, strict=True):
                note(one, other)
        elif isinstance(node, dict):
            for name in node:
                note(value[name], node[name])
        else:
            flat.append(value)
            nodes.append(node)

    note(call.args, call.node.args)
    note(call.kwargs, call.node.kwargs)
    recurrent = operator_name(call.node).startswith(("lstm", "gru", "rnn"))
    for source in dict.fromkeys(n for n in nodes if isinstance(n, fx.Node) and n in call.live):
        value = flat[nodes.index(source)]
        if not isinstance(value, Tensor):
            raise NotTraceableError(f"{source} is passed on as several tensors at once")
        value = value if is_dense(value) else value.contiguous()  # dual numbers need memory of their own
        call.edge(
            source,
            AutogradMap(_as_function_of(call, source), value, call.settings.dtype, recurrent=recurrent),
        )


def _as_function_of(call: Call, source: fx.Node) -> Callable[[Tensor], Tensor]:
    """The operator as a function of one operand, with the others fixed."""

    def function(x: Tensor) -> Tensor:
        def value(given: Any, node: Any) -> Any:
            if node is source:
                return x
            if isinstance(node, (tuple, list)):
                return type(node)(value(g, n) for g, n in zip(given, node, strict=True))
            if isinstance(node, dict):
                return {name: value(given[name], node[name]) for name in node}
            return given

        args: Sequence[Any] = value(call.args, call.node.args)
        result: Any = call.node.target(*args, **value(call.kwargs, call.node.kwargs))  # type: ignore[operator]
        picked: Tensor = result if call.item is None else result[call.item]
        return picked

    return function
