"""The linear program of a traced network: its Jacobians, as a graph of local linear maps.

`LinearProgram.linearize` runs the graph once at a batch of samples, operator by operator as it stands: the
outputs, masks and argmax of pools are those of the model's own forward pass, in its own arithmetic.  Each
operator between input and output records its local Jacobians, by its rule (`jacli.linear_program.rules`) or,
where there is none, by autograd (`jacli.linear_program.autograd_fallback`).  Peephole fusion then rewrites
the linearised graph (`jacli.linear_program.peephole`), and any number of cotangents and tangents pass through
it (`jacli.linear_program.chains`).

This is reverse and forward accumulation (Griewank & Walther, *Evaluating Derivatives*, 2nd ed., SIAM 2008,
ch. 3; 10.1137/1.9780898717761) with a tape that is recorded once per batch and optimised before it is played.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from jacli.device.torch_switches import reduced_precision
from jacli.linear_program.autograd_fallback import differentiate_by_autograd
from jacli.linear_program.call import Call, Edge, MaxPoolResult, NoRule
from jacli.linear_program.chains import Chains
from jacli.linear_program.graph import NO_DERIVATIVE, NotTraceableError, operator_name
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.peephole import fuse
from jacli.linear_program.rules import find_rule
from jacli.linear_program.weight_cache import WeightCache

PASSES_DTYPE = {"bf16": torch.bfloat16}
"""Precision to the dtype of the vectors; the other precisions use the dtype of the input."""


class LinearProgram:
    """The linear program of a graph, valid at every batch size at which the graph is.

    Transformed weights (flipped kernels, folded scales) are cached from batch to batch.

    Args:
        graph: Functional ATen operators; the first placeholder is the input ``(batch, *input)``, the others
            are constants; one output, ``(batch, *output)``.
        names: The callers' names of the constants, in order.

    Attributes:
        names: The constants' names.
        without_rule: Operators that autograd differentiated, with the number of their calls, in the latest
            `linearize`.

    Example:
        >>> import torch
        >>> from jacli.network import trace_network, TensorNetwork
        >>> network = TensorNetwork.of_module(torch.nn.Linear(3, 2).eval().requires_grad_(False))
        >>> x = torch.randn(5, 3)
        >>> linear = LinearProgram(trace_network(network, x, {}).graph).linearize(x)
        >>> linear.batch, linear.n_out, linear.n_in
        (5, 2, 3)
        >>> rows = linear.vjp(torch.eye(2)[:, None].expand(2, 5, 2))  # (k, batch, n_in)
        >>> torch.equal(rows[:, 0], network.module.weight)
        True
    """

    def __init__(self, graph: fx.GraphModule, *, names: Sequence[str] = ()) -> None:
        self.graph = graph
        self.names = tuple(names)
        self.without_rule: Mapping[str, int] = {}
        nodes = list(graph.graph.nodes)
        self._placeholders = [node for node in nodes if node.op == "placeholder"]
        (returned,) = graph.graph.output_node().args
        assert isinstance(returned, fx.Node)  # a graph has one tensor as its output
        self._returned = returned
        self._constant = _constant_nodes(nodes)
        self._last_use = _last_uses(nodes)
        self._weights: dict[tuple[object, ...], WeightCache] = {}

    def linearize(
        self, x: Tensor, constants: Sequence[Any] = (), *, precision: str = "ieee"
    ) -> LinearizedGraph:
        """Run the graph at a batch and record its derivative there.

        Args:
            x: The input, ``(batch, *input)``.
            constants: Values of the graph's other placeholders.
            precision: Of the linear passes: ``ieee``, ``tf32`` or ``bf16``.  The graph itself runs in the
                model's precision.

        Raises:
            NotTraceableError: A value is complex, an operand is a tuple of tensors, or a slope is not finite.

        Cost: about two forward passes (one runs the graph, one makes masks and slopes).  Memory: one number
        per number of the activations that a rule needs, for as long as the map lives.
        """
        dtype = PASSES_DTYPE.get(precision, x.dtype)
        weights = self._weights.setdefault((precision, x.dtype, x.device), WeightCache())
        channels_last = x.device.type == "cpu" or precision != "ieee"
        forward = _ForwardPass(self, PassSettings(dtype, x.device, channels_last, weights))
        with torch.no_grad():
            outputs = forward.run([x.detach(), *constants])
        self.without_rule = dict(forward.without_rule)
        ends = self._placeholders[0], self._returned
        chains = Chains(fuse(forward.edges, *ends), *ends)
        return LinearizedGraph(chains, x, outputs, dtype, precision)


class LinearizedGraph:
    """The linearised graph: the Jacobians at a batch, as a `jacli.linear_maps.LinearMap`.

    Attributes:
        outputs: ``(batch, *output)``, of the forward pass.
        edges: Of the linearised graph, after fusion.
    """

    def __init__(
        self, chains: Chains, x: Tensor, outputs: Tensor, dtype: torch.dtype, precision: str
    ) -> None:
        self.outputs = outputs
        self.edges = chains.edges
        self._chains = chains
        self._x_shape = x.shape
        self._dtype = dtype
        self._precision = precision

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self._x_shape[0]

    @property
    def n_in(self) -> int:
        """Flattened inputs per sample."""
        return self._x_shape[1:].numel()

    @property
    def n_out(self) -> int:
        """Flattened outputs per sample."""
        return self.outputs.shape[1:].numel()

    def vjp(self, cotangents: Tensor) -> Tensor:
        """``x̄ = ȳ J``, ``(k, batch, n_out) -> (k, batch, n_in)``, in one reverse pass."""
        with torch.no_grad(), reduced_precision(self._precision):
            g = cotangents.to(self._dtype).reshape(len(cotangents), *self.outputs.shape)
            rows = self._chains.vjp(g, may_overwrite=g.data_ptr() != cotangents.data_ptr())
            return self._returned(rows, cotangents, self._x_shape)

    def jvp(self, tangents: Tensor) -> Tensor:
        """``dy = J dx``, ``(k, batch, n_in) -> (k, batch, n_out)``, in one forward pass."""
        with torch.no_grad(), reduced_precision(self._precision):
            t = tangents.to(self._dtype).reshape(len(tangents), *self._x_shape)
            columns = self._chains.jvp(t, may_overwrite=t.data_ptr() != tangents.data_ptr())
            return self._returned(columns, tangents, self.outputs.shape)

    @staticmethod
    def _returned(vectors: Tensor | None, given: Tensor, shape: torch.Size) -> Tensor:
        if vectors is None:  # the output does not depend on the input
            return given.new_zeros(len(given), shape[0], shape[1:].numel())
        return vectors.to(given.dtype).reshape(len(given), shape[0], -1)


class _ForwardPass:
    """One run of the graph that records the edges of the linearised graph."""

    def __init__(self, program: LinearProgram, settings: PassSettings) -> None:
        self._program = program
        self._settings = settings
        self._values: dict[fx.Node, Any] = {}
        self._live: set[fx.Node] = set()
        self._calls: dict[fx.Node, tuple[Sequence[Any], Mapping[str, Any]]] = {}
        self.edges: list[Edge] = []
        self.without_rule: Counter[str] = Counter()

    def run(self, inputs: Sequence[Any]) -> Tensor:
        """Run the graph; returns its output."""
        placeholders = iter(inputs)
        graph = self._program.graph
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            if node.op == "placeholder":
                self._values[node] = next(placeholders)
            elif node.op == "get_attr":
                self._values[node] = _attribute(graph, str(node.target))
            else:
                self._call(node)
            for done in self._program._last_use.get(node, ()):
                self._values.pop(done, None)
                self._calls.pop(done, None)
            if node is self._program._placeholders[0]:
                self._live.add(node)
        outputs: Tensor = self._values[self._program._returned]
        return outputs

    def _call(self, node: fx.Node) -> None:
        args = fx.map_arg(node.args, self._values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self._values.__getitem__)
        value = results = _run_operator(node, args, kwargs)
        if isinstance(value, MaxPoolResult):
            value = value.values
        self._values[node] = value
        if not any(before in self._live for before in node.all_input_nodes):
            return
        if isinstance(value, Tensor) and value.is_complex():
            raise NotTraceableError(f"{operator_name(node)} gives complex numbers")
        if node.target is operator.getitem:
            parent, item = node.args
            if _is_floating(value):
                assert isinstance(parent, fx.Node) and isinstance(item, int)
                self._live.add(node)
                self._differentiate(parent, node, *self._calls[parent], results=args[0], item=item)
        elif operator_name(node) in NO_DERIVATIVE:
            return
        elif isinstance(value, (tuple, list)):
            self._live.add(node)
            self._calls[node] = (args, kwargs)
        elif _is_floating(value):
            self._live.add(node)
            self._differentiate(node, node, args, kwargs, results=results, item=None)

    def _differentiate(
        self,
        node: fx.Node,
        target: fx.Node,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        *,
        results: Any,
        item: int | None,
    ) -> None:
        call = Call(
            node=node,
            target=target,
            args=args,
            kwargs=kwargs,
            out=self._values[target],
            results=results,
            item=item,
            live=self._live,
            constant=self._program._constant,
            settings=self._settings,
        )
        rule = find_rule(node)
        try:
            if rule is None:
                raise NoRule
            rule(call)
        except NoRule:
            self.without_rule[operator_name(node)] += 1
            call.edges.clear()
            differentiate_by_autograd(call)
        self.edges += call.edges


def _run_operator(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run the operator as it stands; for a max-pool keep the argmax, which its kernel computes anyway."""
    if node.target is torch.ops.aten.max_pool2d.default:
        return MaxPoolResult(*torch.ops.aten.max_pool2d_with_indices(*args, **kwargs))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _attribute(graph: fx.GraphModule, name: str) -> Any:
    value: Any = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _constant_nodes(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Nodes that do not depend on a placeholder."""
    constant: set[fx.Node] = set()
    for node in nodes:
        called = node.op == "call_function" and all(n in constant for n in node.all_input_nodes)
        if node.op == "get_attr" or (called and node.all_input_nodes):
            constant.add(node)
    return frozenset(constant)


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node to the nodes whose last reader it is: their values are freed once it has run."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for before in node.all_input_nodes:
            last[before] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for before, node in last.items():
        uses.setdefault(node, []).append(before)
    return uses
