"""Minimum vertex cuts of a network's graph: the places where the network is narrow.

If every path from the input to the output passes through r numbers per sample, the Jacobian is a product
``J = (d output / d cut) (d cut / d input)`` of an ``(n_out, r)`` and an ``(r, n_in)`` matrix.  It takes r
reverse passes through the part between input and cut, where the whole network takes n_out.  The narrowest
such place is a minimum vertex cut whose capacities are elements per sample.  Max-flow finds it (Ford &
Fulkerson, 1956; 10.4153/CJM-1956-045-5) once every node is split into an entrance and an exit (Menger's
theorem).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from jacli.linear_program.graph import NO_DERIVATIVE, operator_name, value_of
from jacli.network.trace import TracedNetwork

WORTH_WIDTH = 2
"""A second cut may be at most this many times as wide as the narrowest.  A wider cut pays only where one
direction costs more than the other, and a forward pass costs about twice a reverse pass."""

_HEAVY = ("conv", "linear", "mm", "matmul", "einsum", "attention", "lstm", "gru", "rnn", "bilinear", "cdist")
"""Words in the names of operators with real work; all others are one pass over memory."""


@dataclass(frozen=True)
class Cut:
    """A vertex cut: tensors through which every differentiable path passes.

    Attributes:
        nodes: In the graph's order; one, or several where branches are cut side by side.
        width: Elements per sample of all tensors together, the r of ``J = (n_out, r)(r, n_in)``.
        name: Its place in words: layer and operator.
    """

    nodes: tuple[fx.Node, ...]
    width: int
    name: str


def differentiable_nodes(traced: TracedNetwork) -> set[fx.Node]:
    """Nodes that depend on the input and have a derivative; all others cross a cut as constants.

    >>> import torch
    >>> from jacli.network import TensorNetwork, trace_network
    >>> rounded = torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Softshrink()).eval()
    >>> traced = trace_network(TensorNetwork.of_module(rounded.requires_grad_(False)), torch.zeros(1, 8), {})
    >>> sorted(node.name for node in differentiable_nodes(traced))
    ['arg0_1', 'clone', 'linear', 'softshrink']
    """
    live = {traced.source}
    for node in traced.graph.graph.nodes:
        if node.op != "call_function" or not any(before in live for before in node.all_input_nodes):
            continue
        name = operator_name(node)
        if name not in NO_DERIVATIVE and _is_floating(value_of(node)):
            live.add(node)
    return live


def any_cut(traced: TracedNetwork) -> list[Cut]:
    """The narrowest cut, however wide, with work between it and the input; none in a network of one layer.

    >>> import torch
    >>> from jacli.network import TensorNetwork, trace_network
    >>> coder = torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Tanh(), torch.nn.Linear(2, 8)).eval()
    >>> traced = trace_network(TensorNetwork.of_module(coder.requires_grad_(False)), torch.zeros(1, 8), {})
    >>> [cut.width for cut in any_cut(traced)]
    [2]
    """
    flow = _FlowGraph(traced, math.inf)
    narrowest = flow.narrowest(after=(traced.source,), before=(traced.output,), latest=True, above_work=True)
    return [narrowest] if narrowest is not None else []


def useful_cuts(traced: TracedNetwork, *, n_out: int) -> list[Cut]:
    """Cuts narrower than the output and no wider than the input, in order, the narrowest among them.

    Where a network is narrow at several places with work between them, each place is a cut.  Cost decides in
    which order the links between them are multiplied (`jacli.plans.bracketing`).

    >>> import torch
    >>> from jacli.network import TensorNetwork, trace_network
    >>> coder = torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Tanh(), torch.nn.Linear(2, 8)).eval()
    >>> traced = trace_network(TensorNetwork.of_module(coder.requires_grad_(False)), torch.zeros(1, 8), {})
    >>> [cut.width for cut in useful_cuts(traced, n_out=8)], useful_cuts(traced, n_out=2)
    ([2], [])

    Args:
        traced: The network.
        n_out: Flattened (selected) outputs per sample: a cut of that width saves nothing.

    Returns:
        At most four cuts; none if the network is nowhere narrower.

    Cost: a few max-flows on a graph with one node per operator, 0.01 to 0.4 s.
    """
    n_in = value_of(traced.source)[0].numel()
    flow = _FlowGraph(traced, min(n_out, n_in + 1))
    source, output = (traced.source,), (traced.output,)
    latest = flow.narrowest(after=source, before=output, latest=True)
    # A cut as wide as the input saves nothing unless there is work between the input and it.
    above_work = latest is not None and latest.width == n_in
    if above_work:
        latest = flow.narrowest(after=source, before=output, latest=True, above_work=True)
    if latest is None:
        return []
    cuts = [latest]
    earliest = flow.narrowest(after=source, before=output, latest=False, above_work=above_work)
    if earliest is not None and flow.work_between(earliest.nodes, latest.nodes):
        cuts.insert(0, earliest)
    # Then the narrowest place on either side, if it is narrower than the output.
    below = flow.narrowest(after=(traced.source,), before=cuts[0].nodes, latest=True, apart=True)
    above = flow.narrowest(after=cuts[-1].nodes, before=(traced.output,), latest=True, apart=True)
    sides = [cut if cut and cut.width <= WORTH_WIDTH * latest.width else None for cut in (below, above)]
    return [cut for cut in (sides[0], *cuts, sides[1]) if cut is not None]


def narrowest_of(cuts: Iterable[Cut]) -> Cut | None:
    """The narrowest cut; of equally narrow ones the last, above which the least work remains.

    >>> import torch
    >>> from jacli.network import TensorNetwork, trace_network
    >>> coder = torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Tanh(), torch.nn.Linear(2, 8)).eval()
    >>> traced = trace_network(TensorNetwork.of_module(coder.requires_grad_(False)), torch.zeros(1, 8), {})
    >>> narrowest_of(useful_cuts(traced, n_out=8)).width, narrowest_of([])
    (2, None)
    """
    return min(reversed(list(cuts)), key=lambda cut: cut.width, default=None)


class _FlowGraph:
    """The flow network of a graph's differentiable part; capacity is infinite where no cut may go."""

    def __init__(self, traced: TracedNetwork, limit: float) -> None:
        self._traced = traced
        self._limit = limit
        self._live = differentiable_nodes(traced)
        self._order = {node: i for i, node in enumerate(traced.graph.graph.nodes)}
        self._widths = {node: self._width(node) for node in self._live}

    def _width(self, node: fx.Node) -> float:
        """Elements per sample; infinite if no cut may contain the node."""
        value, axis = value_of(node), self._traced.batch_axis.get(node)
        if axis is None or value.is_complex() or node in (self._traced.source, self._traced.output):
            return math.inf
        return int(value.numel()) // int(value.shape[axis])

    def narrowest(
        self,
        *,
        after: tuple[fx.Node, ...],
        before: tuple[fx.Node, ...],
        latest: bool,
        apart: bool = False,
        above_work: bool = False,
    ) -> Cut | None:
        """The minimum cut between two sets of nodes, if it is narrower than the limit.

        Args:
            after: Nodes between the input and the cut.
            before: Nodes between the cut and the output.
            latest: Of equally narrow cuts take the one nearest to ``before``, else to ``after``.
            apart: Require work between the cut and both ends.
            above_work: Require work between ``after`` and the cut.
        """
        import networkx  # here: most small runs search no cut, and the import takes 0.1 s
        from networkx.algorithms.flow import preflow_push

        network = networkx.DiGraph()
        source, sink = "source", "sink"
        forbidden = self._near(after, up=True) if apart or above_work else set()
        forbidden |= self._near(before, up=False) if apart else set()
        inside = self._between(after, before)
        for node in inside:
            width = math.inf if node in forbidden or node in after or node in before else self._widths[node]
            network.add_edge((node, "in"), (node, "out"), capacity=width)
            for previous in node.all_input_nodes:
                if previous in inside and node not in after and previous not in before:
                    network.add_edge((previous, "out"), (node, "in"), capacity=math.inf)
        for node in after:
            network.add_edge(source, (node, "in"), capacity=math.inf)
        for node in before:
            network.add_edge((node, "out"), sink, capacity=math.inf)
        if sink not in network or source not in network or not networkx.has_path(network, source, sink):
            return None
        # networkx puts nodes that cannot reach the sink on the source's side: the cut nearest to the sink.
        if not latest:
            network, source, sink = network.reverse(copy=False), sink, source
        try:
            width, (near, _) = networkx.minimum_cut(network, source, sink, flow_func=preflow_push)
        except networkx.NetworkXUnbounded:
            return None
        entrance, leave = ("in", "out") if latest else ("out", "in")
        nodes = [node for node in inside if (node, entrance) in near and (node, leave) not in near]
        if not nodes or width >= self._limit or not self._constants_have_batch_axes(nodes):
            return None
        ordered = tuple(sorted(nodes, key=self._order.__getitem__))
        return Cut(ordered, int(width), " + ".join(map(self._describe_node, ordered)))

    def work_between(self, lower: tuple[fx.Node, ...], upper: tuple[fx.Node, ...]) -> bool:
        """Whether an operator with real work lies between two cuts."""
        return any(_is_heavy(node) for node in self._between(lower, upper) if node not in lower)

    def _between(self, after: tuple[fx.Node, ...], before: tuple[fx.Node, ...]) -> list[fx.Node]:
        """Differentiable nodes on a path from one set to the other, both included, in the graph's order."""
        nodes = [node for node in self._traced.graph.graph.nodes if node in self._live]
        reached, needed = set(after), set(before)
        for node in nodes:
            if any(previous in reached for previous in node.all_input_nodes):
                reached.add(node)
        for node in reversed(nodes):
            if any(user in needed for user in node.users if user in self._live):
                needed.add(node)
        return [node for node in nodes if node in reached and node in needed]

    def _near(self, ends: tuple[fx.Node, ...], *, up: bool) -> set[fx.Node]:
        """Nodes without heavy operators between them and one of the ends."""
        near, waiting = set(ends), list(ends)
        while waiting:
            node = waiting.pop()
            for other in node.users if up else node.all_input_nodes:
                crossed = other if up else node
                if other in self._live and other not in near and not _is_heavy(crossed):
                    near.add(other)
                    waiting.append(other)
        return near

    def _constants_have_batch_axes(self, nodes: list[fx.Node]) -> bool:
        """Whether everything else that crosses the cut (masks, indices) has one row per sample too."""
        return all(
            node in self._traced.batch_axis
            for node in crossing_constants(self._traced, self._live, nodes, (self._traced.output,))
        )

    def _describe_node(self, node: fx.Node) -> str:
        layer = self._traced.layers.get(node)
        own = any(before.op == "get_attr" for before in node.all_input_nodes)
        name = operator_name(node)
        return f"{layer or 'input'}" if own and layer else f"{name} after {layer or 'the input'}"


def crossing_constants(
    traced: TracedNetwork, live: set[fx.Node], lower: Iterable[fx.Node], upper: Iterable[fx.Node]
) -> list[fx.Node]:
    """Tensors without a derivative, computed from the input, that the part from ``lower`` to ``upper`` reads.

    They are computed beforehand and passed as constants.
    """
    moving = _depend_on(traced)
    stop, seen, waiting = set(lower), set(), list(upper)
    constants: list[fx.Node] = []
    while waiting:
        node = waiting.pop()
        if node in stop or node in seen:
            continue
        seen.add(node)
        if node in moving and node not in live:
            constants.append(node)
            continue
        waiting += node.all_input_nodes
    order: Mapping[fx.Node, int] = {node: i for i, node in enumerate(traced.graph.graph.nodes)}
    return sorted((node for node in constants if not _is_size(node)), key=order.__getitem__)


def _depend_on(traced: TracedNetwork) -> set[fx.Node]:
    moving = {node for node in traced.graph.graph.nodes if node.op == "placeholder"}
    for node in traced.graph.graph.nodes:
        if any(before in moving for before in node.all_input_nodes):
            moving.add(node)
    return moving


def _is_size(node: fx.Node) -> bool:
    return not isinstance(value_of(node), Tensor)


def _is_floating(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_floating(part) for part in value)
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _is_heavy(node: fx.Node) -> bool:
    return node.op == "call_function" and any(word in operator_name(node) for word in _HEAVY)
