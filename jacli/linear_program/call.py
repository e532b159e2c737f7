"""What a rule sees: one operator of the graph with its operands, and the local Jacobians that it records."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, fx

from jacli.linear_program.local_map import LocalMap, Scale
from jacli.linear_program.pass_settings import PassSettings
from jacli.linear_program.weight_cache import Key


@dataclass
class Edge:
    """An edge of the linearised graph: a chain of local maps from one value to another.

    Attributes:
        source: The value whose tangents go in: a node of the graph, or an inner value of a rule.
        target: The value whose tangents come out.
        maps: In the order of the forward pass; their product is ``d target / d source`` along this edge.
    """

    source: Hashable
    target: Hashable
    maps: list[LocalMap]


class Inner:
    """A value inside an operator where edges of several operands meet, such as the scores of attention."""


class NoRule(Exception):
    """The rule does not cover this call of its operator; autograd differentiates the call."""


class MaxPoolResult(NamedTuple):
    """Results of a max-pool: the maxima, and the flat pixel of the argmax of each window."""

    values: Tensor
    argmax: Tensor


@dataclass
class Call:
    """One call of an operator, at a batch of samples.

    Attributes:
        node: The operator's node.
        target: The node of the result to differentiate: of several results, the node that picks it.
        args: Positional arguments, with values in place of nodes.
        kwargs: Keyword arguments, likewise.
        out: The result to differentiate.
        results: All results.
        item: Number of ``out`` among the results, where there are several.
        live: Nodes whose value depends on the input.
        constant: Nodes whose value is the same in every batch.
        settings: Of the passes.
        edges: The local Jacobians recorded so far.
    """

    node: fx.Node
    target: fx.Node
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Tensor
    results: Any
    item: int | None
    live: frozenset[fx.Node] | set[fx.Node]
    constant: frozenset[fx.Node] | set[fx.Node]
    settings: PassSettings
    edges: list[Edge] = field(default_factory=list)

    @cached_property
    def _positions(self) -> dict[str, int]:
        schema = self.node.target._schema  # type: ignore[union-attr]
        return {argument.name: i for i, argument in enumerate(schema.arguments)}

    def __getitem__(self, name: str) -> Any:
        """Value of an argument, by its name in the operator's schema."""
        return self._argument(name, self.args, self.kwargs)

    def _argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        at = self._positions[name]
        if at < len(args):
            return args[at]
        if name in kwargs:
            return kwargs[name]
        return self.node.target._schema.arguments[at].default_value  # type: ignore[union-attr]

    @property
    def first(self) -> str:
        """Name of the first operand: ``self`` or ``input``."""
        return next(iter(self._positions))

    def has(self, name: str) -> bool:
        """Whether the operator's schema has an argument of that name."""
        return name in self._positions

    def node_of(self, name: str) -> Any:
        """An argument as the graph has it: a node, a list of nodes, or a plain value."""
        return self._argument(name, self.node.args, self.node.kwargs)

    def is_live(self, name: str) -> bool:
        """Whether an argument depends on the input."""
        return self._is_live(self.node_of(name))

    def _is_live(self, node: object) -> bool:
        return isinstance(node, fx.Node) and node in self.live

    def key(self, name: str) -> Key | None:
        """Key of an argument for the cache of weights; None if it may change from batch to batch."""
        node = self.node_of(name)
        if isinstance(node, fx.Node):
            return (node.name,) if node in self.constant else None
        return (repr(node),)

    def only(self, *names: str) -> None:
        """Require that nothing but these arguments depends on the input.

        Raises:
            NoRule: Another argument does.
        """
        allowed = {self.node_of(name) for name in names if isinstance(self.node_of(name), fx.Node)}
        if any(node in self.live and node not in allowed for node in self.node.all_input_nodes):
            raise NoRule

    def edge(self, source: object, *maps: LocalMap, into: Hashable = None) -> None:
        """Record the local Jacobian from an operand to the result; the identity if there are no maps.

        A no-op for operands that do not depend on the input.

        Args:
            source: Name of the operand, its node, or an `Inner`.
            maps: In the order of the forward pass.
            into: An `Inner` in place of the result.
        """
        if isinstance(source, str):
            source = self.node_of(source)
        if isinstance(source, Inner) or self._is_live(source):
            self.edges.append(Edge(source, self.target if into is None else into, list(maps)))

    def scale(self, factors: Tensor, *, axis: int, keys: Iterable[Key | None]) -> Scale:
        """A factor for each index of an axis (negative); ``keys`` names the constants it is computed from."""
        names = tuple(keys)
        key = None if None in names else (self.node.name, *names)
        return Scale(factors, factors.to(self.settings.dtype), axis, key)
