"""Where a network is narrow: minimum vertex cuts of its graph.

If every path from the input to the output passes through r numbers a sample, the Jacobian is a product
``J = (d output / d cut) (d cut / d input)`` of an ``(n_out, r)`` and an ``(r, n_in)`` matrix: r reverse
passes through the part below the cut in place of n_out through the whole.  The narrowest such place is
a minimum vertex cut with capacities of elements a sample, found by max-flow (Ford & Fulkerson, 1956;
Menger's theorem gives the split of every node into an entrance and an exit).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from jacli.linear_program.graph import NO_DERIVATIVE, operator_name, value_of
from jacli.network.trace import TracedNetwork

WORTH_WIDTH = 2
"""A further cut may be this many times as wide as the narrowest.  With r vectors through everything, a wider
cut saves something only where one direction costs more than the other, and forward costs about twice."""

_HEAVY = ("conv", "linear", "mm", "matmul", "einsum", "attention", "lstm", "gru", "rnn", "bilinear", "cdist")
"""Words in the names of operators that are worth cutting between; the rest is one pass over memory."""


@dataclass(frozen=True)
class Cut:
    """Tensors through which every differentiable path goes.

    Attributes:
        nodes: In the graph's order; one, or several where branches are cut side by side.
        width: Elements a sample of all of them together, the r of ``J = (n_out, r)(r, n_in)``.
        name: Where it is, in words: layer and operator.
    """

    nodes: tuple[fx.Node, ...]
    width: int
    name: str


def differentiable_nodes(traced: TracedNetwork) -> set[fx.Node]:
    """Nodes whose value moves with the points and has a derivative; the others cross a cut as constants."""
    live = {traced.source}
    for node in traced.graph.graph.nodes:
        if node.op != "call_function" or not any(before in live for before in node.all_input_nodes):
            continue
        name = operator_name(node)
        if name not in NO_DERIVATIVE and _is_floating(value_of(node)):
            live.add(node)
    return live


def any_cut(traced: TracedNetwork) -> list[Cut]:
    """The narrowest cut with work below it, however wide; none in a network of one layer."""
    flow = _FlowGraph(traced, math.inf)
    found = flow.narrowest(after=(traced.source,), before=(traced.output,), latest=True, above_work=True)
    return [found] if found is not None else []


def useful_cuts(traced: TracedNetwork, *, n_out: int) -> list[Cut]:
    """Cuts narrower than the output and no wider than the input, in order, the narrowest among them.

    Where a network is narrow at several places with work between them, each of these is a cut; the
    links between them are then bracketed by cost (`jacli.plans.bracketing`).

    Args:
        traced: The network.
        n_out: Flattened (selected) outputs: a cut of that width saves nothing.

    Returns:
        At most four; empty where the network is nowhere narrower.

    Cost: some max-flows on a graph of one node an operator, 0.01 to 0.4 s.
    """
    n_in = value_of(traced.source)[0].numel()
    flow = _FlowGraph(traced, min(n_out, n_in + 1))
    source, output = (traced.source,), (traced.output,)
    latest = flow.narrowest(after=source, before=output, latest=True)
    # As wide as the input it is of use only where there is work below it: not as a copy of the input.
    above_work = latest is not None and latest.width == n_in
    if above_work:
        latest = flow.narrowest(after=source, before=output, latest=True, above_work=True)
    if latest is None:
        return []
    found = [latest]
    earliest = flow.narrowest(after=source, before=output, latest=False, above_work=above_work)
    if earliest is not None and flow.work_between(earliest.nodes, latest.nodes):
        found.insert(0, earliest)
    # Then the narrowest place of what lies on either side, as long as it is narrower than the output.
    below = flow.narrowest(after=(traced.source,), before=found[0].nodes, latest=True, apart=True)
    above = flow.narrowest(after=found[-1].nodes, before=(traced.output,), latest=True, apart=True)
    sides = [cut if cut and cut.width <= WORTH_WIDTH * latest.width else None for cut in (below, above)]
    return [cut for cut in (sides[0], *found, sides[1]) if cut is not None]


def narrowest_of(cuts: Iterable[Cut]) -> Cut | None:
    """The narrowest; of several equally narrow ones the last, whose upper part is the cheapest."""
    return min(reversed(list(cuts)), key=lambda cut: cut.width, default=None)


class _FlowGraph:
    """The differentiable part of a network, with what a cut may and may not go through."""

    def __init__(self, traced: TracedNetwork, limit: float) -> None:
        self._traced = traced
        self._limit = limit
        self._live = differentiable_nodes(traced)
        self._order = {node: i for i, node in enumerate(traced.graph.graph.nodes)}
        self._widths = {node: self._width(node) for node in self._live}

    def _width(self, node: fx.Node) -> float:
        """Elements a sample; infinite where a cut may not go."""
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
            after: Nodes it lies above.
            before: Nodes it lies below.
            latest: Of several equally narrow ones the one nearest to ``before``, else to ``after``.
            apart: Only where there is work between it and either end.
            above_work: Only where there is work between ``after`` and it.
        """
        import networkx  # here, since most small runs search no cut and the import takes a tenth of a second
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
        # networkx puts all that cannot reach the sink on the source's side: the cut nearest to the sink.
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
        return Cut(ordered, int(width), " + ".join(map(self._place, ordered)))

    def work_between(self, lower: tuple[fx.Node, ...], upper: tuple[fx.Node, ...]) -> bool:
        """Whether an operator that costs something lies between two cuts."""
        return any(_is_heavy(node) for node in self._between(lower, upper) if node not in lower)

    def _between(self, after: tuple[fx.Node, ...], before: tuple[fx.Node, ...]) -> list[fx.Node]:
        """Live nodes on a path from one set to the other, both included, in the graph's order."""
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
        """Nodes with nothing heavy between them and one of the ends."""
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
        """Whether whatever else crosses the cut (masks, indices) has one row a sample too."""
        return all(
            node in self._traced.batch_axis
            for node in crossing_constants(self._traced, self._live, nodes, (self._traced.output,))
        )

    def _place(self, node: fx.Node) -> str:
        layer = self._traced.layers.get(node)
        own = any(before.op == "get_attr" for before in node.all_input_nodes)
        name = operator_name(node)
        return f"{layer or 'input'}" if own and layer else f"{name} after {layer or 'the input'}"


def crossing_constants(
    traced: TracedNetwork, live: set[fx.Node], lower: Iterable[fx.Node], upper: Iterable[fx.Node]
) -> list[fx.Node]:
    """Tensors without a derivative that the part from ``lower`` to ``upper`` needs of the points.

    They are computed beforehand and go in as constants.
    """
    moving = _depend_on(traced)
    stop, seen, waiting = set(lower), set(), list(upper)
    found: list[fx.Node] = []
    while waiting:
        node = waiting.pop()
        if node in stop or node in seen:
            continue
        seen.add(node)
        if node in moving and node not in live:
            found.append(node)
            continue
        waiting += node.all_input_nodes
    order: Mapping[fx.Node, int] = {node: i for i, node in enumerate(traced.graph.graph.nodes)}
    return sorted((node for node in found if not _is_size(node)), key=order.__getitem__)


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
