"""An operator without a rule: its derivative as torch makes it, batched over the vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jvp, vjp, vmap

from jacli.network.adjoint.call import Call
from jacli.network.adjoint.local_map import is_dense
from jacli.network.settings import batched_pass
from jacli.network.trace import NotTraceableError, operator_name


@dataclass(frozen=True)
class AsTraced:
    """The derivative of a function of one tensor at a point, as torch differentiates it.

    Attributes:
        function: From the operand to the result.
        point: The operand's value.
        dtype: Of the vectors outside; inside they have the point's.
        recurrent: Whether it is a recurrent layer.
    """

    function: Callable[[Tensor], Tensor]
    point: Tensor
    dtype: torch.dtype
    recurrent: bool

    def pull(self, g: Tensor, *, mine: bool) -> Tensor:
        def pulled(cotangent: Tensor) -> Tensor:
            result: Tensor = vjp(self.function, self.point)[1](cotangent)[0]
            return result

        return self._batched(pulled, g)

    def push(self, t: Tensor, *, mine: bool) -> Tensor:
        def pushed(tangent: Tensor) -> Tensor:
            result: Tensor = jvp(self.function, (self.point,), (tangent,))[1]
            return result

        return self._batched(pushed, t)

    def _batched(self, product: Callable[[Tensor], Tensor], vectors: Tensor) -> Tensor:
        with torch.enable_grad(), batched_pass(recurrent=self.recurrent):
            found: Tensor = vmap(product)(vectors.to(self.point.dtype))
            return found.detach().to(self.dtype)


def as_traced(call: Call) -> None:
    """An edge from every operand that moves with the points."""
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
        value = value if is_dense(value) else value.contiguous()  # a dual number wants memory of its own
        call.edge(source, AsTraced(_of_one(call, source), value, call.passes.dtype, recurrent))


def _of_one(call: Call, source: fx.Node) -> Callable[[Tensor], Tensor]:
    """The operator as a function of one operand, the others as they were."""

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
        found: Tensor = result if call.item is None else result[call.item]
        return found

    return function
