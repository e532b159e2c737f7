"""What a rule sees: one operator of the graph with the values it was called with, and what it gives back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import Tensor, fx

from jacli.linear_program.local_map import Key, LocalMap, Scale
from jacli.linear_program.prepared import Passes


@dataclass
class Edge:
    """A chain of local maps from one value to another, the first nearest the input.

    Attributes:
        source: The value whose tangents go in: a node of the graph, or an inner value of a rule.
        target: The value whose tangents come out.
        maps: Their product is the derivative of the one with respect to the other along this way.
    """

    source: Hashable
    target: Hashable
    maps: list[LocalMap]


class Inner:
    """A value inside an operator, such as the scores of attention, that several operands meet in."""


class NoRule(Exception):
    """The operator is called in a way that its rule does not cover: it runs as traced."""


class WithWinners(NamedTuple):
    """What a max-pool gives, and the flat pixel of each window's winner."""

    values: Tensor
    winners: Tensor


@dataclass
class Call:
    """One operator at a block of samples.

    Attributes:
        node: The operator's node.
        target: The node of the result that is differentiated: of several, the one that takes it out.
        args: Its positional arguments, values in place of nodes.
        kwargs: Its keyword arguments, likewise.
        out: Its result; of several results the one that is differentiated.
        results: All of them.
        item: Number of that result, where there are several.
        live: Nodes whose value moves with the points.
        constant: Nodes that are the same at every block.
        passes: How vectors are carried.
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
    passes: Passes
    edges: list[Edge] = field(default_factory=list)

    @cached_property
    def _positions(self) -> dict[str, int]:
        schema = self.node.target._schema  # type: ignore[union-attr]
        return {argument.name: i for i, argument in enumerate(schema.arguments)}

    def __getitem__(self, name: str) -> Any:
        """The value of an argument by its name in the operator's schema."""
        return self._argument(name, self.args, self.kwargs)

    def _argument(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        at = self._positions[name]
        if at < len(args):
            return args[at]
        if name in kwargs:
            return kwargs[name]
        return self.node.target._schema.arguments[at].default_value  # type: ignore[union-attr]

    def has(self, name: str) -> bool:
        """Whether the operator has an argument of that name."""
        return name in self._positions

    def node_of(self, name: str) -> Any:
        """What the graph says at an argument: a node, a list of nodes, or a plain value."""
        return self._argument(name, self.node.args, self.node.kwargs)

    def is_live(self, name: str) -> bool:
        """Whether an argument moves with the points."""
        return self._is_live(self.node_of(name))

    def _is_live(self, node: object) -> bool:
        return isinstance(node, fx.Node) and node in self.live

    def key(self, name: str) -> Key | None:
        """A name of an argument that is the same at every block; None where it may change."""
        node = self.node_of(name)
        if isinstance(node, fx.Node):
            return (node.name,) if node in self.constant else None
        return (repr(node),)

    def only(self, *names: str) -> None:
        """Refuse a call in which anything else than these arguments moves with the points.

        Raises:
            NoRule: Something else does.
        """
        allowed = {self.node_of(name) for name in names if isinstance(self.node_of(name), fx.Node)}
        if any(node in self.live and node not in allowed for node in self.node.all_input_nodes):
            raise NoRule

    def edge(self, source: object, *maps: LocalMap, into: Hashable = None) -> None:
        """Say how a value moves the result: ``source`` is an argument's name, a node, or an `Inner`.

        Nothing is said of what does not move with the points.
        """
        if isinstance(source, str):
            source = self.node_of(source)
        if isinstance(source, Inner) or self._is_live(source):
            self.edges.append(Edge(source, self.target if into is None else into, list(maps)))

    def scale(self, factors: Tensor, *, axis: int, keys: Iterable[Key | None]) -> Scale:
        """A factor for each index of an axis (negative); ``keys`` names the constants that they come from."""
        found = tuple(keys)
        known = None if None in found else (self.node.name, *found)
        return Scale(factors, factors.to(self.passes.dtype), axis, known)
