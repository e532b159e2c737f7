"""A traced network in pieces: the part between two cuts as a network of its own.

With p - 1 cuts there are p links, link 0 nearest the input; the span ``[first, last)`` of links takes
the numbers of cut ``first`` (the points, for 0) to those of cut ``last`` (the outputs, for p).  The
tensors of a cut are flattened and put side by side, one row per sample, so that every span is a network
from ``(batch, width)`` to ``(batch, width)`` and is linearised as any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx

from jacli.device.torch_switches import batched_pass, forward_pass
from jacli.errors import MethodError, telling_line, translating
from jacli.linear_maps import Extra
from jacli.linear_maps.agreement import same_outputs
from jacli.linear_program import LinearProgram
from jacli.linear_program.graph import NotTraceableError, value_of
from jacli.network.cut import Cut, crossing_constants, differentiable_nodes, narrowest_of
from jacli.network.linearize import Linearized
from jacli.network.network import TensorNetwork, duplicated
from jacli.network.trace import TracedNetwork

aten = torch.ops.aten


@dataclass(frozen=True)
class SpanNetwork:
    """The part of a network between two cuts, in the role of a `TensorNetwork`.

    Attributes:
        module: Graph with inputs ``(batch, width)`` (``(batch, *input)`` at the start of the chain) and the
            constants that cross from below; output ``(batch, width)`` (``(batch, *output)`` at its end).
        constants: Names of these constants in order, each with one row per sample.
        recurrent: As of `TensorNetwork`.
        squeezes_batch_of_one: As of `TensorNetwork`.
    """

    module: fx.GraphModule
    constants: tuple[str, ...]
    recurrent: bool
    squeezes_batch_of_one: bool
    saves_copies: bool = field(default=False, init=False)
    scripted_attention: bool = field(default=False, init=False)

    @cached_property
    def program(self) -> LinearProgram:
        """The part as a program of linear maps."""
        return LinearProgram(self.module, names=self.constants)

    def __call__(self, x: Tensor, extra: Extra) -> Tensor:
        arguments = [x, *(extra[name] for name in self.constants)]
        with batched_pass(), forward_pass(recurrent=self.recurrent, device=x.device):
            values: Tensor = self.module(*(map(duplicated, arguments) if self._is_lone(x) else arguments))
        return values[:1] if self._is_lone(x) else values

    def _is_lone(self, x: Tensor) -> bool:
        return self.squeezes_batch_of_one and x.shape[0] == 1

    def copied(self) -> SpanNetwork:
        """Itself: a graph keeps no state."""
        return self

    def renewing(self) -> SpanNetwork:
        """Itself: a graph keeps no state."""
        return self

    def saving_copies(self) -> SpanNetwork:
        """Itself: a graph overwrites nothing."""
        return self


class CutNetwork:
    """A traced network and the cuts through it.

    Attributes:
        traced: The graph.
        cuts: From the input to the output; at least one.
    """

    def __init__(
        self,
        traced: TracedNetwork,
        cuts: Sequence[Cut],
        *,
        recurrent: bool = False,
        squeezes_batch_of_one: bool = False,
    ) -> None:
        if not cuts:
            raise ValueError("a network without cuts is not cut")
        self.traced = traced
        self.cuts = tuple(cuts)
        self._recurrent = recurrent
        self._squeezes_batch_of_one = squeezes_batch_of_one
        self._live = differentiable_nodes(traced)
        self._placeholders = [node for node in traced.graph.graph.nodes if node.op == "placeholder"]
        self._spans: dict[tuple[int, int], SpanNetwork] = {}
        self._constants = {
            (first, last): self._crossing(first, last)
            for first in range(self.n_links)
            for last in range(first + 1, self.n_links + 1)
        }
        self._kept = tuple(
            dict.fromkeys(
                [traced.output]
                + [node for cut in self.cuts for node in cut.nodes]
                + [node for nodes in self._constants.values() for node in nodes]
            )
        )
        self._everything = _with_outputs(traced.graph, self._kept)

    @property
    def n_links(self) -> int:
        """One more than there are cuts."""
        return len(self.cuts) + 1

    @property
    def narrowest(self) -> int:
        """Number of the narrowest cut, from 1: it lies between links ``narrowest - 1`` and ``narrowest``."""
        cut = narrowest_of(self.cuts)
        assert cut is not None  # there is one at least
        return 1 + self.cuts.index(cut)

    def _ends(self, at: int) -> tuple[fx.Node, ...]:
        if at == 0:
            return (self.traced.source,)
        return (self.traced.output,) if at == self.n_links else self.cuts[at - 1].nodes

    def _crossing(self, first: int, last: int) -> tuple[fx.Node, ...]:
        """Constants that a span needs: at the start of the chain only arguments, the rest it computes."""
        live = self._live if first else set(self.traced.graph.graph.nodes) - set(self._placeholders[1:])
        constants = crossing_constants(self.traced, live, self._ends(first), self._ends(last))
        if any(node not in self.traced.batch_axis for node in constants):
            raise NotTraceableError("what crosses a cut has no row per sample")
        return tuple(constants)

    def span(self, first: int, last: int) -> SpanNetwork:
        """Links ``first`` to ``last - 1`` as one network; built at its first use."""
        if (first, last) not in self._spans:
            self._spans[first, last] = self._build(first, last)
        return self._spans[first, last]

    def values(self, x: Tensor, extra: Extra) -> dict[fx.Node, Tensor]:
        """Every tensor at the cuts, every constant that crosses one, and the output, at a batch of points."""
        arguments = [x, *(extra[name] for name in self.traced.extra)]
        alone = self._squeezes_batch_of_one and x.shape[0] == 1
        with torch.no_grad():
            tensors = self._everything(*(map(duplicated, arguments) if alone else arguments))
        values = dict(zip(self._kept, tensors, strict=True))
        if alone:
            axes = self.traced.batch_axis
            values = {node: v.narrow(axes[node], 0, 1) for node, v in values.items()}
        return values

    def point(self, at: int, x: Tensor, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """The numbers of cut ``at``, ``(batch, width)``; the points themselves for 0."""
        if at == 0:
            return x
        return torch.cat([self._rows(node, values[node]).flatten(1) for node in self._ends(at)], dim=1)

    def constants(self, first: int, last: int, values: Mapping[fx.Node, Tensor]) -> dict[str, Tensor]:
        """The constants that cross into a span, batch axis first."""
        return {node.name: self._rows(node, values[node]) for node in self._constants[first, last]}

    def _rows(self, node: fx.Node, value: Tensor) -> Tensor:
        return value.movedim(self.traced.batch_axis[node], 0)

    def _build(self, first: int, last: int) -> SpanNetwork:
        """Copies the nodes between two cuts into a graph whose inputs are the lower cut and the constants."""
        traced, graph = self.traced, fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        entry = graph.placeholder("point")
        for node in self._constants[first, last]:
            row_first = graph.placeholder(node.name)
            copies[node] = graph.call_function(aten.movedim.int, (row_first, 0, traced.batch_axis[node]))
        if first == 0:
            copies[traced.source] = entry
        else:
            self._unpack(graph, entry, first, copies)
        inner = self._between(first, last, set(copies))
        for node in traced.graph.graph.nodes:
            if self._is_batch_size(node):
                copies[node] = graph.call_function(aten.sym_size.int, (entry, 0))
            elif node in inner and node not in copies:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[traced.output] if last == self.n_links else self._pack(graph, last, copies))
        graph.eliminate_dead_code()
        module = fx.GraphModule(traced.graph, graph)
        names = tuple(node.name for node in self._constants[first, last])
        return SpanNetwork(module, names, self._recurrent, self._squeezes_batch_of_one)

    def _between(self, first: int, last: int, given: set[fx.Node]) -> set[fx.Node]:
        needed: set[fx.Node] = set()
        waiting = list(self._ends(last))
        while waiting:
            node = waiting.pop()
            if node not in given and node not in needed:
                needed.add(node)
                # The batch size is read off the span's own input: it needs no other.
                waiting += [] if self._is_batch_size(node) else node.all_input_nodes
        return needed

    def _is_batch_size(self, node: fx.Node) -> bool:
        return node.target is aten.sym_size.int and node.args == (self.traced.source, 0)

    def _unpack(self, graph: fx.Graph, entry: fx.Node, at: int, copies: dict[fx.Node, fx.Node]) -> None:
        """``(batch, width)`` back into the tensors of a cut."""
        start = 0
        for node in self._ends(at):
            value, axis = value_of(node), self.traced.batch_axis[node]
            shape = [n for i, n in enumerate(value.shape) if i != axis]
            part = graph.call_function(aten.narrow.default, (entry, 1, start, math.prod(shape)))
            part = graph.call_function(aten.unflatten.int, (part, 1, shape)) if len(shape) != 1 else part
            copies[node] = graph.call_function(aten.movedim.int, (part, 0, axis)) if axis else part
            start += math.prod(shape)

    def _pack(self, graph: fx.Graph, at: int, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
        parts = []
        for node in self._ends(at):
            part = graph.call_function(aten.movedim.int, (copies[node], self.traced.batch_axis[node], 0))
            parts.append(graph.call_function(aten.flatten.using_ints, (part, 1)))
        return parts[0] if len(parts) == 1 else graph.call_function(aten.cat.default, (parts, 1))


def _with_outputs(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """The same computation that returns the values of these nodes."""
    made = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op != "output":
            copies[node] = made.node_copy(node, copies.__getitem__)
    made.output(tuple(copies[node] for node in nodes))
    made.eliminate_dead_code()
    return fx.GraphModule(graph, made)


class CutLinearized(Linearized):
    """A `Linearized` network that can also be linearised link by link.

    As a linear map it is the original network's; `span` gives the pieces, whose product it is.
    """

    def __init__(
        self,
        network: TensorNetwork,
        x: Tensor,
        extra: Extra,
        selected: Tensor | None = None,
        *,
        cut_network: CutNetwork,
        n_out: int | None = None,
        precision: str = "ieee",
    ) -> None:
        super().__init__(network, x, extra, selected, n_out=n_out, precision=precision)
        self.cut_network = cut_network
        self._values: dict[fx.Node, Tensor] | None = None

    @property
    def n_links(self) -> int:
        """Number of pieces."""
        return self.cut_network.n_links

    @property
    def narrowest(self) -> int:
        """Number of the narrowest cut, from 1."""
        return self.cut_network.narrowest

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers a sample at the input, at each cut, and (selected) at the output."""
        return (self.n_in, *(cut.width for cut in self.cut_network.cuts), self.n_out)

    def span(self, first: int, last: int) -> Linearized:
        """Links ``first`` to ``last - 1`` at these points; close it when it is done with.

        Raises:
            MethodError: The graph's outputs at these points are not the model's.
        """
        if self._values is None:
            self._values = self._checked_values()
        cut = self.cut_network
        part = cut.span(first, last)
        return Linearized(
            part,
            cut.point(first, self._x, self._values),
            cut.constants(first, last, self._values),
            self._selected if last == cut.n_links else None,
            outputs=self.outputs if last == cut.n_links else cut.point(last, self._x, self._values),
            program=part.program,
            precision=self._precision,
        )

    def _checked_values(self) -> dict[fx.Node, Tensor]:
        """One forward pass of the graph, held against the model's own outputs."""
        with translating(
            lambda error: _not_cut(f"Its traced graph fails on this batch: {telling_line(error)}")
        ):
            values = self.cut_network.values(self._x, self._extra)
        if same_outputs(self.outputs, values[self.cut_network.traced.output]):
            return values
        raise _not_cut("The outputs of its traced graph are not those of the model on this batch.")

    def close(self) -> None:
        """Free what the linearisation holds."""
        super().close()
        self._values = None


def _not_cut(why: str) -> MethodError:
    return MethodError(
        "The network cannot be cut.", why=why, hint="Leave --method out, or choose --method loop."
    )
