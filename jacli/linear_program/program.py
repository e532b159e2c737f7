"""A network's graph as a program of linear maps.

At a block of samples the graph is run once, operator by operator as it stands: the outputs, the masks and the
winners of pools are those of the model's own forward pass, in its own arithmetic.  Each operator on the way
from the input to the output leaves its derivative there as a local linear map, by its rule (`RULES`) or,
where there is none, as torch differentiates it.  What is left is linear: cotangents are pulled through
it backwards (the adjoint), tangents pushed forwards, any number at a time, by `jacli.linear_program.chains`.

This is reverse and forward accumulation of derivatives (Griewank & Walther, *Evaluating Derivatives*,
2nd ed., 2008, ch. 3) with the tape written once a block and rewritten before it is played.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from jacli.device.torch_switches import reduced_precision
from jacli.linear_program.autograd_fallback import as_traced
from jacli.linear_program.call import Call, Edge, NoRule, WithWinners
from jacli.linear_program.chains import Chains
from jacli.linear_program.graph import NO_DERIVATIVE, NotTraceableError, operator_name
from jacli.linear_program.prepared import Passes
from jacli.linear_program.rules import find_rule
from jacli.linear_program.simplify import simplify

PASSES_DTYPE = {"bf16": torch.bfloat16}
"""Precision to the dtype of vectors; those of the points for the others."""


class Program:
    """The linear program of a graph, valid at every batch size as the graph is.

    What is prepared from constants (flipped kernels, folded scales) is kept from block to block.

    Args:
        graph: Functional ATen operators; the first placeholder is the points ``(batch, *input)``, the others
            are constants; one output, ``(batch, *output)``.
        names: What the callers call the constants, in order.

    Attributes:
        names: The constants' names.
        without_rule: Operators that run as traced, with their number, once a block was linearised.
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
        self._stores: dict[tuple[object, ...], dict[Any, Any]] = {}

    def linearize(self, x: Tensor, constants: Sequence[Any] = (), *, precision: str = "ieee") -> ProgramMap:
        """Run the graph at a block and leave its derivative there.

        Args:
            x: The points, ``(batch, *input)``.
            constants: Values of the graph's further placeholders.
            precision: Of the passes to come: ``ieee``, ``tf32`` or ``bf16``; the graph runs as it is.

        Raises:
            NotTraceableError: Its numbers become complex on the way, or several tensors are one operand.

        Cost: a forward pass and as much again for masks and multipliers; memory: these.
        """
        dtype = PASSES_DTYPE.get(precision, x.dtype)
        store = self._stores.setdefault((precision, x.dtype, x.device), {})
        images_last = x.device.type == "cpu" or precision != "ieee"
        run = _Run(self, Passes(dtype, x.device, images_last, store))
        with torch.no_grad():
            outputs = run.forward([x.detach(), *constants])
        self.without_rule = dict(run.without_rule)
        ends = self._placeholders[0], self._returned
        chains = Chains(simplify(run.edges, *ends), *ends)
        return ProgramMap(chains, x, outputs, dtype, precision)


class ProgramMap:
    """The Jacobians of a block as a linear map, by its program; a `jacli.linear_map.LinearMap`.

    Attributes:
        outputs: ``(batch, *output)``, of the forward pass.
    """

    def __init__(
        self, chains: Chains, x: Tensor, outputs: Tensor, dtype: torch.dtype, precision: str
    ) -> None:
        self.outputs = outputs
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
        """Flattened inputs a sample."""
        return self._x_shape[1:].numel()

    @property
    def n_out(self) -> int:
        """Flattened outputs a sample."""
        return self.outputs.shape[1:].numel()

    def vjp(self, cotangents: Tensor) -> Tensor:
        """``(k, batch, n_out) -> (k, batch, n_in)``, one adjoint pass."""
        with torch.no_grad(), reduced_precision(self._precision):
            g = cotangents.to(self._dtype).reshape(len(cotangents), *self.outputs.shape)
            rows = self._chains.pull(g, mine=g.data_ptr() != cotangents.data_ptr())
            return self._returned(rows, cotangents, self._x_shape)

    def jvp(self, tangents: Tensor) -> Tensor:
        """``(k, batch, n_in) -> (k, batch, n_out)``, one tangent pass."""
        with torch.no_grad(), reduced_precision(self._precision):
            t = tangents.to(self._dtype).reshape(len(tangents), *self._x_shape)
            columns = self._chains.push(t, mine=t.data_ptr() != tangents.data_ptr())
            return self._returned(columns, tangents, self.outputs.shape)

    @staticmethod
    def _returned(vectors: Tensor | None, given: Tensor, shape: torch.Size) -> Tensor:
        if vectors is None:  # the output does not move with the points
            return given.new_zeros(len(given), shape[0], shape[1:].numel())
        return vectors.to(given.dtype).reshape(len(given), shape[0], -1)


class _Run:
    """One forward pass over the graph that collects the edges of the linear program."""

    def __init__(self, program: Program, passes: Passes) -> None:
        self._program = program
        self._passes = passes
        self._values: dict[fx.Node, Any] = {}
        self._live: set[fx.Node] = set()
        self._calls: dict[fx.Node, tuple[Sequence[Any], Mapping[str, Any]]] = {}
        self.edges: list[Edge] = []
        self.without_rule: Counter[str] = Counter()

    def forward(self, inputs: Sequence[Any]) -> Tensor:
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
                self._run(node)
            for done in self._program._last_use.get(node, ()):
                self._values.pop(done, None)
                self._calls.pop(done, None)
            if node is self._program._placeholders[0]:
                self._live.add(node)
        outputs: Tensor = self._values[self._program._returned]
        return outputs

    def _run(self, node: fx.Node) -> None:
        args = fx.map_arg(node.args, self._values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, self._values.__getitem__)
        value = results = _run_operator(node, args, kwargs)
        if isinstance(value, WithWinners):
            value = value.values
        self._values[node] = value
        if not any(before in self._live for before in node.all_input_nodes):
            return
        if isinstance(value, Tensor) and value.is_complex():
            raise NotTraceableError(f"{operator_name(node)} gives complex numbers")
        if node.target is operator.getitem:
            parent, item = node.args
            if _moves(value):
                assert isinstance(parent, fx.Node) and isinstance(item, int)
                self._live.add(node)
                self._differentiate(parent, node, *self._calls[parent], results=args[0], item=item)
        elif operator_name(node) in NO_DERIVATIVE:
            return
        elif isinstance(value, (tuple, list)):
            self._live.add(node)
            self._calls[node] = (args, kwargs)
        elif _moves(value):
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
            passes=self._passes,
        )
        rule = find_rule(node)
        try:
            if rule is None:
                raise NoRule
            rule(call)
        except NoRule:
            self.without_rule[operator_name(node)] += 1
            call.edges.clear()
            as_traced(call)
        self.edges += call.edges


def _run_operator(node: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The operator as it stands; of a max-pool the winners too, which its kernel finds in any case."""
    if node.target is torch.ops.aten.max_pool2d.default:
        return WithWinners(*torch.ops.aten.max_pool2d_with_indices(*args, **kwargs))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _moves(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _attribute(graph: fx.GraphModule, name: str) -> Any:
    value: Any = graph
    for part in name.split("."):
        value = getattr(value, part)
    return value.detach() if isinstance(value, Tensor) else value


def _constant_nodes(nodes: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Nodes that depend on no placeholder."""
    constant: set[fx.Node] = set()
    for node in nodes:
        called = node.op == "call_function" and all(n in constant for n in node.all_input_nodes)
        if node.op == "get_attr" or (called and node.all_input_nodes):
            constant.add(node)
    return frozenset(constant)


def _last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node to those that are needed no more once it has run; what is taken out of a tuple keeps the tuple."""
    last: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        for before in node.all_input_nodes:
            last[before] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for before, node in last.items():
        uses.setdefault(node, []).append(before)
    return uses
